"""Code usage against the reference numbers `losses`, and its invariants."""

from __future__ import annotations

import pytest
import torch

from rqstack.quantizers import ResidualQuantizer
from rqstack.quantizers.usage import CodeUsage, code_histogram, entropy

NUM_CODES = 64


@pytest.fixture
def io(golden):
    return golden("losses").io


@pytest.fixture
def usage(io) -> CodeUsage:
    window = CodeUsage(4, NUM_CODES)
    window.update(io["usage.codes_0"])
    window.update(io["usage.codes_1"])
    return window.reduce()


def close(actual, expected, atol):
    torch.testing.assert_close(actual, expected, atol=atol, rtol=0)


def test_golden_histogram_and_entropy(io, usage):
    histogram = usage.counts_DK.float() / 64  # the reference divides every batch by its 8 x 8 positions
    close(histogram, io["usage.histogram"], 5e-6)
    close(entropy(histogram), io["usage.entropy"], 5e-6)
    padded = torch.cat([histogram, torch.zeros(4, 1)], dim=1)
    close(entropy(padded), io["usage.entropy_w_pad"], 5e-6)
    close(entropy(padded[:, :-1]), io["usage.entropy_wo_pad"], 5e-6)
    close(entropy(histogram[:, :-1]), io["usage.entropy_nogan_accm"], 5e-6)
    close(entropy(io["usage.freq_row"]), io["usage.entropy_row"], 2e-6)


def test_golden_entropy_of_one_depth(io):
    """The reference stores it as float64 but computes it in float32: the exact value is 5e-8 away from it."""
    histogram = code_histogram(io["usage.codes_0"], NUM_CODES)[0]
    expected = io["usage.numpy_entropy_depth0"]
    close(entropy(histogram).double(), expected, 3e-9)
    close(entropy(histogram.double()), expected, 1e-7)


def test_golden_summary(io, usage):
    summary = usage.summary()
    close(summary["perplexity"], io["usage.derived_perplexity"], 5e-5)
    close(summary["used_fraction"], io["usage.derived_used_fraction"], 1e-6)
    assert torch.equal(summary["dead"], (io["usage.histogram"] == 0).sum(1))


def test_histogram_counts_each_depth_apart():
    codes = torch.tensor([[[[0, 2], [0, 1]]]])
    assert code_histogram(codes, [2, 3]).tolist() == [[2, 0, 0], [0, 1, 1]]


def test_sizes_per_depth_do_not_count_the_padding_as_dead():
    usage = CodeUsage(2, [2, 8])
    usage.update(torch.tensor([[0, 0], [1, 0], [0, 0], [1, 0]]))
    summary = usage.summary()
    assert summary["used_fraction"].tolist() == [1.0, 0.125]
    assert summary["dead"].tolist() == [0, 7]
    close(summary["perplexity"], torch.tensor([2.0, 1.0]), 1e-6)


def test_uniform_codes_have_full_perplexity():
    usage = CodeUsage(1, 256)
    usage.update(torch.arange(256).repeat(4)[:, None])
    close(usage.summary()["perplexity"], torch.tensor([256.0]), 1e-3)


def test_empty_window():
    summary = CodeUsage(2, 4).summary()
    assert summary["perplexity"].tolist() == [1.0, 1.0]
    assert summary["dead"].tolist() == [4, 4]


def test_reset_starts_a_new_window(io, usage):
    usage.reset()
    usage.update(io["usage.codes_1"])
    assert usage.counts_DK.sum() == io["usage.codes_1"].numel()


def test_update_after_reduce_is_refused(io, usage):
    with pytest.raises(AssertionError, match="reset"):
        usage.update(io["usage.codes_0"])


def test_state_continues_the_window(io, usage):
    first = CodeUsage(4, NUM_CODES)
    first.update(io["usage.codes_0"])
    resumed = CodeUsage(4, NUM_CODES)
    resumed.load_state_dict(first.state_dict())
    resumed.update(io["usage.codes_1"])
    assert torch.equal(resumed.counts_DK, usage.counts_DK)
    assert first.counts_DK.sum() == io["usage.codes_0"].numel()


@pytest.mark.parametrize("sizes", [[4], [4, 0], [4, 4, 4]])
def test_wrong_sizes(sizes):
    with pytest.raises(ValueError, match="2 codebook sizes"):
        CodeUsage(2, sizes)


def test_reduce_sums_over_ranks_once(monkeypatch):
    def two_equal_ranks(*tensors: torch.Tensor) -> None:
        for tensor in tensors:
            tensor.mul_(2)

    monkeypatch.setattr("rqstack.quantizers.arithmetic.sync.all_reduce_sum", two_equal_ranks)
    usage = CodeUsage(1, 3)
    usage.update(torch.tensor([[0], [2], [2]]))
    assert usage.reduce().reduce().counts_DK.tolist() == [[2, 0, 4]]


def test_dropped_levels_are_not_counted():
    codes = torch.tensor([[0, 2], [1, -1], [-1, -1]])
    assert code_histogram(codes, [2, 3]).tolist() == [[1, 1, 0], [0, 0, 1]]
    usage = CodeUsage(2, [2, 3])
    usage.update(codes)
    assert usage.summary()["dead"].tolist() == [0, 2]


def test_restarts_of_a_window_are_what_the_counters_grew_by():
    usage = CodeUsage(2, 3)
    assert "restarts" not in usage.summary()
    usage.note_restarts(torch.tensor([2, 0]))
    usage.note_restarts(torch.tensor([3, 1]))
    assert usage.summary()["restarts"].tolist() == [3, 1]
    usage.reset()
    usage.note_restarts(torch.tensor([3, 5]))
    assert usage.reduce().summary()["restarts"].tolist() == [0, 4]


def test_state_continues_the_restarts_though_the_counters_start_again():
    first, resumed = CodeUsage(1, 3), CodeUsage(1, 3)
    first.note_restarts(torch.tensor([2]))
    resumed.load_state_dict(first.state_dict())
    resumed.note_restarts(torch.tensor([1]))
    assert resumed.summary()["restarts"].tolist() == [3]


@pytest.mark.parametrize("restart", [True, False])
def test_a_quantizer_counts_what_it_restarts(restart):
    quantizer = ResidualQuantizer(4, (5, 6), restart_unused_codes=restart, decay=0.0)
    z = torch.zeros(8, 4)  # one code of each level is chosen, all others are unused
    usage = CodeUsage(2, quantizer.num_codes)
    usage.update(quantizer(z).codes)
    quantizer.update_codebook()
    usage.note_restarts(quantizer.restart_counts())
    assert usage.summary()["restarts"].tolist() == ([4, 5] if restart else [0, 0])
    assert usage.summary()["dead"].tolist() == [4, 5]
    assert not any("num_restarts" in name for name in quantizer.state_dict())
