"""One alternating step of a codebook: closed form, masked rows, gradients from elsewhere, shared parameters."""

import pytest
import torch
from torch.nn import functional as F

from rqstack.quantizers.codebooks.alternating import alternating_step, codebook_gradients
from rqstack.quantizers.codebooks.restart_draw import CodedVectors


def coded(x, codes, valid=None):
    return CodedVectors(x, codes, torch.ones(len(x), dtype=torch.bool) if valid is None else valid)


def test_one_sgd_step_moves_code_vectors_towards_their_vectors():
    rows = torch.nn.Parameter(torch.randn(5, 3))
    x, codes = torch.randn(20, 3), torch.randint(0, 5, (20,))
    before = rows.detach().clone()
    loss = alternating_step(torch.optim.SGD([rows], lr=0.7), lambda: [rows], [[coded(x, codes)]])
    torch.testing.assert_close(loss, F.mse_loss(before[codes], x))
    pull = torch.zeros(5, 3).index_add_(0, codes, 2 * (before[codes] - x) / 60)
    torch.testing.assert_close(rows.detach(), before - 0.7 * pull)
    assert rows.grad is None
    assert not loss.requires_grad


def test_masked_rows_and_the_split_into_batches_do_not_matter():
    x, codes = torch.randn(20, 3), torch.randint(0, 5, (20,))
    dirty, valid = torch.cat([x[:8], torch.full((3, 3), float("nan")), x[8:]]), torch.ones(23, dtype=torch.bool)
    valid[8:11] = False
    dirty_codes = torch.cat([codes[:8], torch.full((3,), -1), codes[8:]])
    rows = torch.randn(5, 3)
    whole = codebook_gradients([rows], lambda: [rows], [[coded(x, codes)]])
    masked = codebook_gradients([rows], lambda: [rows], [[coded(dirty, dirty_codes, valid)]])
    parts = codebook_gradients([rows], lambda: [rows], [[coded(x[:3], codes[:3]), coded(x[3:], codes[3:])]])
    for other in (masked, parts):
        torch.testing.assert_close(other[0], whole[0])
        torch.testing.assert_close(other[1], whole[1])
    assert not rows.requires_grad


def test_several_codebooks_and_what_they_are_computed_from():
    rows, scale = torch.nn.Parameter(torch.randn(2, 5, 3)), torch.nn.Parameter(torch.ones(3))
    x, codes = torch.randn(2, 12, 3), torch.randint(0, 5, (2, 12))
    _, grads, _ = codebook_gradients(
        [rows, scale], lambda: list(rows * scale), [[coded(x[book], codes[book])] for book in range(2)]
    )
    chosen = torch.stack([(rows * scale)[book][codes[book]] for book in range(2)])
    expected = torch.autograd.grad(F.mse_loss(chosen, x), (rows, scale))
    torch.testing.assert_close(grads, list(expected))


def test_gradients_from_elsewhere_are_kept_and_take_no_part():
    rows = torch.nn.Parameter(torch.zeros(4, 2), requires_grad=False)
    rows.grad = torch.full((4, 2), 100.0)
    x = torch.ones(6, 2)
    alternating_step(torch.optim.SGD([rows], lr=1.0), lambda: [rows], [[coded(x, torch.zeros(6, dtype=torch.int64))]])
    assert rows.grad.eq(100).all()
    assert not rows.requires_grad
    assert rows[0].tolist() == pytest.approx([1.0, 1.0])
    assert not rows[1:].any()


def test_no_row_no_step():
    rows = torch.nn.Parameter(torch.ones(4, 2))
    optimizer = torch.optim.AdamW([rows], lr=1.0, weight_decay=1.0)
    nothing = coded(torch.full((3, 2), float("inf")), torch.zeros(3, dtype=torch.int64), torch.zeros(3).bool())
    assert alternating_step(optimizer, lambda: [rows], [[nothing]]) == 0
    assert rows.eq(1).all()
