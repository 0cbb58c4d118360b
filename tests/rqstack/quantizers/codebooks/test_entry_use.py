"""Restart by least-recent use, in EMA and learned codebooks; seeds of the draws; codebooks trained in both ways."""

import pytest
import torch
from torch.nn import functional as F

from rqstack.quantizers.codebooks.entry_use import RestartRule, count_codes
from rqstack.quantizers.codebooks.learned import LearnedCodebook
from rqstack.quantizers.codebooks.moving_average import EMACodebook, TrainedEMACodebook
from rqstack.quantizers.codebooks.restart_draw import CodedVectors


def coded(x, codes):
    return CodedVectors(x, torch.as_tensor(codes), torch.ones(len(x), dtype=torch.bool))


def make(kind, num_codes, rule, **settings):
    if kind == "learned":
        return LearnedCodebook(num_codes, 2, restart=rule, **settings)
    return (TrainedEMACodebook if kind == "both" else EMACodebook)(num_codes, 2, restart=rule, **settings)


def changed_entries(book, chosen_at_each_update):
    """Which entries of no vector changed at each update; entries choose a vector of their own."""
    changes = []
    for chosen in chosen_at_each_update:
        before = book.weight.detach().clone()
        book.update([coded(torch.randn(len(chosen), 2), chosen)])
        moved = (before != book.weight.detach()).any(1).nonzero()[:, 0].tolist()
        changes.append([entry for entry in moved if entry not in chosen])
    return changes


@pytest.mark.parametrize("kind", ["ema", "learned", "both"])
def test_entries_restart_when_so_many_updates_in_a_row_have_not_chosen_them(kind):
    book = make(kind, 3, RestartRule(unused_for=3))
    chosen = [[0], [0, 1], [0], [0], [0], [0, 2], [0], [0]]
    assert changed_entries(book, chosen) == [[], [], [2], [], [1], [], [], [1]]
    assert book.num_restarts == 3
    assert book.used_at.tolist() == [8, 8, 6]


def test_least_recent_use_ignores_cluster_sizes_and_respects_the_grace_period():
    book = EMACodebook(3, 2, decay=0.1, restart=RestartRule(below=100.0, unused_for=2))
    assert changed_entries(book, [[0, 1]] * 3) == [[], [2], []]
    book = EMACodebook(3, 2, decay=0.1, restart=RestartRule(unused_for=1, grace=3))
    assert changed_entries(book, [[0, 1]] * 7) == [[], [], [], [2], [], [], [2]]


@pytest.mark.parametrize("kind", ["ema", "learned"])
def test_a_start_counts_as_use(kind):
    book = make(kind, 3, RestartRule(unused_for=3))
    changed_entries(book, [[0]] * 2)
    book.assign(torch.randn(3, 2), torch.ones(3))
    assert changed_entries(book, [[0]] * 3) == [[], [], [1, 2]]


def test_restarted_rows_of_a_learned_codebook_are_vectors_of_the_step():
    book = LearnedCodebook(4, 2, decay=0.5, restart=RestartRule(1.5))
    x = 100 + torch.randn(8, 2)
    book.update([coded(x, [0] * 8)], to_rows=lambda vectors: 2 * vectors)
    assert (torch.cdist(book.rows[1:] / 2, x).min(1).values < 1e-3).all()
    assert book.cluster_size_ema.tolist() == [4.5, 1.5, 1.5, 1.5]
    assert book.rows[0].abs().max() < 1
    plain = LearnedCodebook(4, 2)
    before = plain.rows.detach().clone()
    plain.update([coded(x, [0] * 8)])
    assert torch.equal(plain.rows, before)
    assert list(plain.state_dict()) == ["rows"]


def test_seeds_give_other_draws_and_the_default_is_that_of_before():
    x, codes = torch.randn(50, 2), [0] * 50
    drawn = []
    for seed in (0, 0, 1, 2):
        book = EMACodebook(6, 2, restart=RestartRule(), seed=seed)
        book.update([coded(x, codes)])
        drawn.append(book.embed_ema[1:])
    assert torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[0], drawn[2])
    assert not torch.equal(drawn[2], drawn[3])


def test_counts_leave_invalid_codes_out():
    valid = torch.tensor([True, False, True, False])
    batch = CodedVectors(torch.randn(4, 2), torch.tensor([2, -1, 2, 1]), valid)
    assert count_codes([batch, batch], 3).tolist() == [0, 0, 4]


@pytest.mark.parametrize("normalize", [False, True])
def test_without_a_gradient_a_trained_ema_codebook_is_an_ema_codebook(normalize):
    plain, trained = (book(5, 3, normalize=normalize, decay=0.8) for book in (EMACodebook, TrainedEMACodebook))
    trained.assign(plain.weight, torch.ones(5))
    plain.assign(plain.weight, torch.ones(5))
    for _ in range(20):
        batch = coded(F.normalize(torch.randn(9, 3), dim=1), torch.randint(0, 4, (9,)))
        plain.update([batch])
        trained.update([batch])
        torch.testing.assert_close(trained.weight.detach(), plain.weight, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(trained.cluster_size_ema, plain.cluster_size_ema)


def test_moving_averages_start_from_where_the_optimizer_left_the_vectors():
    book = TrainedEMACodebook(2, 1, decay=0.5)
    book.assign(torch.tensor([[2.0], [4.0]]), torch.tensor([1.0, 1.0]))
    optimizer = torch.optim.SGD(book.parameters(), lr=1.0)
    book.weight.sum().backward()
    optimizer.step()  # 1 and 3
    book.update([coded(torch.tensor([[5.0]]), [0])])
    torch.testing.assert_close(book.weight.detach(), torch.tensor([[3.0], [3.0]]), rtol=1e-4, atol=0)
    torch.testing.assert_close(book.embed_ema, torch.tensor([[3.0], [1.5]]), rtol=1e-4, atol=0)


def test_the_optimizer_moves_unit_vectors_in_their_direction_only():
    book = TrainedEMACodebook(1, 2, decay=0.5, normalize=True)
    book.assign(torch.tensor([[1.0, 0.0]]), torch.tensor([3.0]))
    book.rows.data.copy_(torch.tensor([[0.0, 7.0]]))
    torch.testing.assert_close(book.weight.detach(), torch.tensor([[0.0, 1.0]]))
    book.update([coded(torch.tensor([[1.0, 0.0]]), [0])])
    torch.testing.assert_close(book.embed_ema, torch.tensor([[0.5, 1.5]]))
    torch.testing.assert_close(book.rows.detach().norm(dim=1), torch.ones(1))


def test_a_trained_ema_codebook_stays_fp32_when_cast():
    book = TrainedEMACodebook(4, 2)
    before = {name: value.clone() for name, value in book.state_dict().items()}
    assert set(before) == {"rows", "cluster_size_ema", "embed_ema", "num_updates"}
    for cast in (book.half, book.bfloat16, book.double):
        cast()
        for name, value in book.state_dict().items():
            assert torch.equal(value, before[name]), name
            assert value.dtype == before[name].dtype
    assert book.to("meta").weight.is_meta


def test_wrong_rules_are_refused():
    with pytest.raises(ValueError, match="at least 1 update, got 0"):
        RestartRule(unused_for=0)
