"""Beam search over residual levels against a brute-force one."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from rqstack.quantizers.arithmetic.beam_search import TableLevel, beam_search
from rqstack.quantizers.arithmetic.nearest import nearest_codes

DIM = 6


def brute_force(x_E, books, width, cosine, weights):
    """One vector: a list of (score, codes, residual), all continuations sorted at every level."""
    beams = [(0.0, [], x_E)]
    for index, book in enumerate(books):
        found = []
        for score, codes, residual in beams:
            errors = (residual - book).square().sum(1)
            if weights is not None:
                searched = F.normalize(residual, dim=-1) if cosine else residual
                errors = score + weights[index] * (searched - book).square().mean(1)
            found += [(errors[k].item(), [*codes, k], residual - book[k]) for k in range(len(book))]
        keep = 1 if index == len(books) - 1 else width
        beams = sorted(found, key=lambda candidate: candidate[0])[:keep]
    return beams[0][1]


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    seed=st.integers(0, 10_000),
    width=st.integers(1, 9),
    sizes=st.lists(st.sampled_from([1, 2, 3, 31, 32, 33, 70, 128]), min_size=1, max_size=4),
    cosine=st.booleans(),
    weighted=st.booleans(),
)
def test_codes_are_those_of_brute_force(seed, width, sizes, cosine, weighted):
    torch.manual_seed(seed)
    books = [torch.randn(size, DIM) for size in sizes]
    books = [F.normalize(book, dim=1) for book in books] if cosine else books
    weights = [0.1 + value for value in torch.rand(len(sizes)).tolist()] if weighted else None
    x = torch.randn(7, DIM)
    codes = beam_search(x, [TableLevel(book) for book in books], width, cosine=cosine, weights=weights)
    expected = [brute_force(row, books, width, cosine, weights) for row in x]
    assert codes.tolist() == expected


def test_the_error_is_that_of_the_best_sum_once_the_beam_holds_all():
    books = [torch.randn(5, DIM) for _ in range(3)]
    x = torch.randn(20, DIM)
    codes = beam_search(x, [TableLevel(book) for book in books], 25)
    sums = (books[0][:, None, None] + books[1][:, None] + books[2]).flatten(0, 2)
    best = torch.cdist(x, sums).min(1).values
    found = sum(book[codes[:, level]] for level, book in enumerate(books))
    torch.testing.assert_close((x - found).norm(dim=1), best)


@pytest.mark.parametrize("cosine", [False, True])
def test_one_beam_is_the_greedy_search(cosine):
    books = [torch.randn(100, DIM) for _ in range(3)]
    books = [F.normalize(book, dim=1) for book in books] if cosine else books
    x = torch.randn(200, DIM)
    codes, left = beam_search(x, [TableLevel(book) for book in books], 1, cosine=cosine), x
    for level, book in enumerate(books):
        nearest = nearest_codes(F.normalize(left, dim=1) if cosine else left, book)
        assert torch.equal(codes[:, level], nearest)
        left = left - book[nearest]


def test_levels_with_one_codebook_keep_different_sums():
    """Of 3 levels the 6 different sums of 2 out of 3 codes fit the beam; copies in another order would crowd them."""
    torch.manual_seed(0)
    book = torch.randn(3, DIM)
    x = torch.randn(300, DIM)
    codes = beam_search(x, [TableLevel(book)] * 3, 6)
    sums = (book[:, None, None] + book[:, None] + book).flatten(0, 2)
    torch.testing.assert_close((x - book[codes].sum(1)).norm(dim=1), torch.cdist(x, sums).min(1).values)
    book = torch.randn(12, DIM) * 0.5
    same, copies = [TableLevel(book)] * 6, [TableLevel(book) for _ in range(6)]
    errors = [(x - book[beam_search(x, levels, 4)].sum(1)).square().mean() for levels in (same, copies)]
    assert errors[0] < 0.99 * errors[1]


def test_rounding_does_not_choose_between_orders_of_the_same_codes():
    torch.manual_seed(0)
    level = TableLevel(torch.randn(40, DIM))
    x = torch.randn(500, DIM)
    codes = beam_search(x, [level] * 4, 4)
    assert torch.equal(beam_search(x + 1e-6 * torch.randn_like(x), [level] * 4, 4), codes)
    pair = level.weight_KE[beam_search(x, [level] * 2, 4)]
    first, second = ((x - pair[:, index]).norm(dim=1) for index in range(2))
    assert (first <= second).all(), "the order in which the sum of fewer codes is the better one"


def test_wider_beams_leave_less():
    torch.manual_seed(0)
    books = [torch.randn(64, DIM) * 0.5**level for level in range(5)]
    x = torch.randn(500, DIM)
    errors = []
    for width in (1, 2, 4, 16):
        codes = beam_search(x, [TableLevel(book) for book in books], width)
        errors.append((x - sum(book[codes[:, level]] for level, book in enumerate(books))).square().mean().item())
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < 0.8 * errors[0]


def test_chunks_change_nothing(monkeypatch):
    books = [torch.randn(50, DIM) for _ in range(3)]
    x = torch.randn(40, DIM)
    whole = beam_search(x, [TableLevel(book) for book in books], 3)
    monkeypatch.setattr("rqstack.quantizers.arithmetic.beam_search.rows_per_chunk", lambda *_: 7)
    assert torch.equal(beam_search(x, [TableLevel(book) for book in books], 3), whole)


def test_a_level_of_weight_zero_still_takes_near_codes():
    books = [torch.randn(50, DIM) for _ in range(2)]
    x = torch.randn(30, DIM)
    codes = beam_search(x, [TableLevel(book) for book in books], 2, weights=[1.0, 0.0])
    left = x - books[0][codes[:, 0]]
    assert torch.equal(codes[:, 1], nearest_codes(left, books[1]))


def test_rows_that_are_not_finite_harm_no_other():
    books = [torch.randn(40, DIM) for _ in range(3)]
    levels = [TableLevel(book) for book in books]
    x = torch.randn(9, DIM)
    expected = beam_search(x, levels, 4)
    x[4, 0], x[5, 1] = float("nan"), float("inf")
    codes = beam_search(x, levels, 4)
    assert ((codes >= 0) & (codes < 40)).all()
    rest = [0, 1, 2, 3, 6, 7, 8]
    assert torch.equal(codes[rest], expected[rest])


def test_noise_draws_from_the_softmax_of_the_distances():
    book = torch.tensor([[0.0], [1.0], [2.0]])
    x = torch.full((20_000, 1), 0.3)
    torch.manual_seed(0)
    codes = beam_search(x, [TableLevel(book, temp=0.7)], 2)
    expected = (-(x[0] - book[:, 0]).square() / 0.7).softmax(0)
    torch.testing.assert_close(codes[:, 0].bincount(minlength=3) / len(x), expected, atol=0.02, rtol=0)


def test_no_vectors_have_no_codes():
    assert beam_search(torch.randn(0, DIM), [TableLevel(torch.randn(4, DIM))] * 2, 2).shape == (0, 2)


def test_wrong_settings_are_refused():
    level = TableLevel(torch.randn(4, DIM))
    with pytest.raises(ValueError, match="width 0"):
        beam_search(torch.randn(2, DIM), [level], 0)
    with pytest.raises(ValueError, match="2 levels need as many weights"):
        beam_search(torch.randn(2, DIM), [level, level], 2, weights=[1.0])
    with pytest.raises(ValueError, match="temp must be positive"):
        TableLevel(torch.randn(4, DIM), temp=0.0)
