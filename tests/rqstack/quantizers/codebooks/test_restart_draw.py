"""The draw of restart candidates: without replacement, uniform, and independent of how the vectors are split."""

import pytest
import torch

from rqstack.counter_noise import hash_int64, hash_uniform
from rqstack.quantizers import ResidualQuantizer, ResidualVectorOptions, ResidualVectorQuantizer, RestartRule
from rqstack.quantizers.codebooks.restart_draw import (
    CodedVectors,
    draw_candidates,
    sums_by_code,
)


def batch(x, valid=None):
    valid = torch.ones(len(x), dtype=torch.bool) if valid is None else valid
    return CodedVectors(x, torch.zeros(len(x), dtype=torch.int64), valid)


def seed(number):
    return torch.tensor(number)


def test_the_split_into_batches_does_not_matter():
    x = torch.randn(60, 3)
    whole, count = draw_candidates([batch(x)], 16, seed(5))
    parts, _ = draw_candidates([batch(x[:7]), batch(x[7:40]), batch(x[40:])], 16, seed(5))
    assert count == 16
    assert torch.equal(whole, parts)
    assert not torch.equal(whole, draw_candidates([batch(x)], 16, seed(6))[0])


def test_candidates_are_distinct_valid_rows():
    x, valid = torch.randn(60, 3), torch.arange(60) % 2 == 0
    candidates, count = draw_candidates([batch(x, valid)], 20, seed(0))
    rows = (candidates[:, None] == x).all(-1)
    assert count == 20
    assert (rows.sum(1) == 1).all()
    assert rows.any(0).sum() == 20
    assert not rows[:, ~valid].any()


def test_too_few_vectors_leave_zero_rows():
    x = torch.randn(5, 3)
    candidates, count = draw_candidates([batch(x)], 8, seed(0))
    assert count == 5
    assert (candidates[5:] == 0).all()
    assert set(map(tuple, candidates[:5].tolist())) == set(map(tuple, x.tolist()))


@pytest.mark.parametrize(
    "make",
    [
        lambda: ResidualVectorQuantizer(4, 8, 3, ResidualVectorOptions(restart=RestartRule(1e6), kmeans_init=False)),
        lambda: ResidualQuantizer(4, (8, 8, 8), restart_unused_codes=True, codebook_update="deferred"),
    ],
)
def test_residual_levels_restart_with_different_vectors(make):
    """A row that becomes a code vector of one level leaves nothing to the next: that should learn from others."""
    quantizer = make()
    plain = isinstance(quantizer, ResidualQuantizer)
    books = [quantizer.codebook_at(d) if plain else quantizer.level_at(d).codebook_at(0) for d in range(3)]
    for book in books:
        book.weight.mul_(1e-3)  # the residuals of all levels are close to the rows
        book.cluster_size_ema.zero_()
    z = torch.randn(1000, 4)
    quantizer(z)
    quantizer.update_codebook()
    chosen = [set(torch.cdist(book.weight, z).argmin(1).tolist()) for book in books]
    assert all(len(rows) > 4 for rows in chosen)
    assert not (chosen[0] & chosen[1] or chosen[1] & chosen[2] or chosen[0] & chosen[2])


def test_draws_are_uniform():
    x = torch.arange(10.0)[:, None]
    hits = torch.zeros(10)
    for number in range(2000):
        hits[draw_candidates([batch(x)], 3, seed(number))[0][:, 0].long()] += 1
    assert ((hits - 600).abs() < 90).all(), hits


def test_hash_is_the_splitmix64_finaliser():
    """Against the published constants, computed with Python's unbounded integers."""

    def reference(value):
        value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) % 2**64
        value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) % 2**64
        return (value ^ (value >> 31)) % 2**63

    values = [1, 2, 12345678901234567, 2**62 + 17]
    assert hash_int64(torch.tensor(values)).tolist() == [reference(value) for value in values]
    assert hash_int64(torch.tensor([-3])).item() == reference(2**64 - 3)


def test_hashed_numbers_fill_the_interval():
    uniform = hash_uniform(torch.arange(20_000))
    assert uniform.min() >= -1
    assert uniform.max() < 1
    assert abs(uniform.mean()) < 0.02
    assert abs(uniform.var() - 1 / 3) < 0.01


def test_sums_by_code_leave_invalid_rows_out():
    x, codes, valid = torch.randn(50, 3), torch.randint(0, 7, (50,)), torch.arange(50) % 3 > 0
    expected = torch.zeros(7, 3).index_add_(0, codes[valid], x[valid])
    x[~valid] = float("nan")
    assert torch.equal(sums_by_code(x, codes, valid, 7), expected)
    assert torch.equal(sums_by_code(x[:0], codes[:0], valid[:0], 7), torch.zeros(7, 3))
