"""The steps of a codebook of moving averages, and codebooks that are kept apart."""

import torch

from rqstack.quantizers.arithmetic import sync
from rqstack.quantizers.codebooks.averages import counts_and_sums, replace_unused, smoothed_sizes, state_seed
from rqstack.quantizers.codebooks.restart_draw import CodedVectors


def rows(num=20, codes=5, dim=3):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(num, dim, generator=generator)
    return CodedVectors(x, torch.arange(num) % codes, torch.arange(num) % 4 != 0)


def test_counts_and_sums_of_valid_rows():
    coded = rows()
    parts = [CodedVectors(*(t[part] for t in coded)) for part in (slice(0, 7), slice(7, 20))]
    counts, sums = counts_and_sums(parts, 6)
    torch.testing.assert_close(counts_and_sums([coded], 6), (counts, sums))
    for code in range(6):
        chosen = (coded.codes_N == code) & coded.valid_N
        assert counts[code] == chosen.sum()
        torch.testing.assert_close(sums[code], coded.x_NE[chosen].sum(0))


def test_smoothed_sizes_keep_their_sum_and_leave_none_empty():
    sizes = torch.tensor([[0.0, 3.0, 1.0], [2.0, 2.0, 2.0]])
    smoothed = smoothed_sizes(sizes, 0.1)
    torch.testing.assert_close(smoothed.sum(1), sizes.sum(1))
    assert (smoothed > 0).all()
    torch.testing.assert_close(smoothed[1], sizes[1])
    torch.testing.assert_close(smoothed[0], torch.tensor([0.1, 3.1, 1.1]) * 4 / 4.3)


def test_unused_codes_get_different_valid_vectors():
    coded = rows()
    unused = torch.tensor([True, False, True, True, False])
    vectors, replaced = replace_unused(unused, coded, torch.tensor(3))
    assert torch.equal(replaced, unused)
    found = [(vectors[code] == coded.x_NE).all(1).nonzero().item() for code in unused.nonzero().flatten()]
    assert len(set(found)) == 3
    assert coded.valid_N[found].all()
    other, _ = replace_unused(unused, coded, torch.tensor(4))
    assert not torch.equal(other[unused], vectors[unused])


def test_codes_beyond_the_vectors_wait():
    coded = rows(6)
    unused = torch.ones(40, dtype=torch.bool)
    chosen = [replace_unused(unused, coded, torch.tensor(seed))[1] for seed in range(3)]
    assert [int(one.sum()) for one in chosen] == [4, 4, 4]
    assert not torch.equal(chosen[0], chosen[1])
    nothing = CodedVectors(coded.x_NE, coded.codes_N, torch.zeros(6, dtype=torch.bool))
    assert not replace_unused(unused, nothing, torch.tensor(0))[1].any()


def test_the_seed_changes_with_the_state():
    state = torch.ones(2, 4)
    first = state_seed(state)
    assert first == state_seed(state.clone())
    state[1, 2] += 1e-6
    assert state_seed(state) != first


def test_alone_switches_collectives_off(monkeypatch):
    monkeypatch.setattr(sync.dist, "is_initialized", lambda: True)
    monkeypatch.setattr(sync.dist, "get_world_size", lambda: 2)
    monkeypatch.setattr(sync.dist, "get_rank", lambda: 1)
    assert sync.is_distributed()
    with sync.alone():
        with sync.alone():
            assert not sync.is_distributed()
        assert (sync.world_size(), sync.rank()) == (1, 0)
        sync.all_reduce_sum(torch.ones(1))  # without a process group this would fail
    assert sync.world_size() == 2
