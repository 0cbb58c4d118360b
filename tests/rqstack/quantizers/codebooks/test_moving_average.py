"""The EMA codebook: update arithmetic, unused entries, restart, non-finite vectors, casts."""

import pytest
import torch

from rqstack.quantizers import EMACodebook, RestartRule
from rqstack.quantizers.codebooks.restart_draw import CodedVectors


def coded(x, codes, valid=None):
    valid = torch.ones(len(x), dtype=torch.bool) if valid is None else valid
    return CodedVectors(x, torch.as_tensor(codes), valid)


def test_update_by_hand():
    book = EMACodebook(2, 1, decay=0.5)
    book.weight.copy_(torch.tensor([[0.0], [10.0]]))
    book.embed_ema.copy_(book.weight)
    book.update([coded(torch.tensor([[1.0], [2.0], [3.0]]), [0, 0, 1])])
    assert book.cluster_size_ema.tolist() == [1.5, 1.0]
    assert book.embed_ema.tolist() == [[1.5], [6.5]]
    size = (torch.tensor([1.5, 1.0]) + 1e-5) * 2.5 / (2.5 + 2e-5)
    torch.testing.assert_close(book.weight, torch.tensor([[1.5], [6.5]]) / size[:, None])
    assert book.num_updates == 1


def test_several_batches_are_one_update():
    x, codes = torch.randn(12, 3), torch.randint(0, 4, (12,))
    whole, parts = EMACodebook(4, 3), EMACodebook(4, 3)
    parts.load_state_dict(whole.state_dict())
    whole.update([coded(x, codes)])
    parts.update([coded(x[:5], codes[:5]), coded(x[5:], codes[5:])])
    for name, value in whole.state_dict().items():
        torch.testing.assert_close(parts.state_dict()[name], value, msg=name)


def test_unused_entries_keep_their_vector_or_explode_as_published():
    kept, published = EMACodebook(8, 4), EMACodebook(8, 4, keep_unused=False)
    before = kept.weight.clone()
    for _ in range(500):
        for book in (kept, published):
            book.update([coded(torch.randn(6, 4), [0, 0, 1, 1, 1, 2])])
    assert torch.equal(kept.weight[3:], before[3:])
    assert kept.weight.isfinite().all()
    assert published.weight[3:].abs().max() > 100 * published.weight[:3].abs().max()


def test_used_entries_converge_to_the_mean_of_their_vectors():
    book = EMACodebook(3, 2, decay=0.9)
    x = torch.tensor([[1.0, 2.0], [3.0, 4.0], [-5.0, 0.0]])
    for _ in range(200):
        book.update([coded(x, [0, 0, 1])])
    torch.testing.assert_close(book.weight[:2], torch.tensor([[2.0, 3.0], [-5.0, 0.0]]), atol=1e-3, rtol=0)


def test_restart_repeats_with_noise_when_vectors_are_few():
    book = EMACodebook(10, 4, restart=RestartRule())
    x = torch.randn(3, 4)
    book.update([coded(x, [0, 0, 0])])
    assert (book.cluster_size_ema == 1).sum() == 9
    assert len(book.embed_ema.unique(dim=0)) == 10, "repeats differ from each other"
    distance = torch.cdist(book.embed_ema[1:], x).min(1).values
    assert (distance < 0.05).all()
    assert (distance == 0).sum() == 3, "the first use of a vector is exact"


@pytest.mark.parametrize("keep_unused", [False, True])
def test_restarted_entries_are_searched_with_their_new_vector(keep_unused):
    book = EMACodebook(6, 4, restart=RestartRule(), keep_unused=keep_unused)
    x = torch.randn(50, 4)
    book.update([coded(x, [0] * 50)])
    torch.testing.assert_close(book.weight[1:], book.embed_ema[1:], atol=1e-3, rtol=0)


def test_restart_draws_differ_from_update_to_update_and_repeat_with_the_state():
    x, codes = torch.randn(200, 4), torch.zeros(200, dtype=torch.int64)
    books = [EMACodebook(10, 4, restart=RestartRule()) for _ in range(2)]
    books[1].load_state_dict(books[0].state_dict())
    for book in books:
        book.update([coded(x, codes)])
    assert torch.equal(books[0].embed_ema, books[1].embed_ema)
    first = books[0].embed_ema[1:].clone()
    books[0].cluster_size_ema[1:] = 0
    books[0].update([coded(x, codes)])
    assert not (books[0].embed_ema[1:, None] == first).all(-1).any(1).all()


@pytest.mark.parametrize("restart", [None, RestartRule()])
def test_invalid_and_non_finite_rows_leave_no_trace(restart):
    x, codes = torch.randn(40, 4), torch.randint(0, 8, (40,))
    bad = torch.full((2, 4), float("nan"))
    clean, dirty = EMACodebook(8, 4, restart=restart), EMACodebook(8, 4, restart=restart)
    dirty.load_state_dict(clean.state_dict())
    clean.update([coded(x, codes)])
    mixed = torch.cat([x[:20], bad, x[20:]])
    valid = torch.ones(42, dtype=torch.bool)
    valid[20:22] = False
    dirty.update([coded(mixed, torch.cat([codes[:20], torch.tensor([0, 7]), codes[20:]]), valid)])
    for name, value in clean.state_dict().items():
        assert torch.equal(dirty.state_dict()[name], value), name


def test_only_invalid_rows_restart_nothing():
    book = EMACodebook(4, 2, restart=RestartRule())
    before = book.weight.clone()
    book.update([coded(torch.full((3, 2), float("inf")), [0, 1, 2], torch.zeros(3, dtype=torch.bool))])
    assert torch.equal(book.weight, before)


def test_casts_and_moves_keep_the_state_in_fp32():
    book = EMACodebook(4, 2)
    book.update([coded(torch.randn(3, 2), [0, 1, 2])])
    before = {name: value.clone() for name, value in book.state_dict().items()}
    for cast in (book.half, book.bfloat16, book.double, lambda: book.to(torch.float16)):
        cast()
        for name, value in book.state_dict().items():
            assert torch.equal(value, before[name]), name
            assert value.dtype == before[name].dtype
    assert not list(book.parameters())
    assert book.to("meta").weight.is_meta
