"""The speed benchmark: what it prints, what it measures, and that its cases are those they say."""

import json
import types

import pytest
import torch
from torch import nn

from benchmarks import quantizer_speed, speed_cases
from benchmarks.speed_cases import CASES, Case
from rqstack.quantizers import (
    FiniteScalarOptions,
    FiniteScalarQuantizer,
    RandomProjectionOptions,
    RandomProjectionQuantizer,
    VectorQuantizer,
)

TINY = [
    Case("tiny-vq", 40, 6, lambda: VectorQuantizer(6, 20), {"class": "PeerVQ", "dim": 6}, floor=(1, 6, 20)),
    Case(
        "tiny-fsq",
        40,
        3,
        lambda: FiniteScalarQuantizer(3, FiniteScalarOptions([3, 3, 3])),
        {"class": "PeerVQ", "dim": 3},
    ),
    Case(
        "tiny-projection",
        12,
        6,
        lambda: speed_cases._CodesOnly(RandomProjectionQuantizer(6, 8, RandomProjectionOptions(3))),
        {"class": "PeerVQ", "dim": 6},
        floor=(1, 3, 8),
        passes=("eval",),
        peer_image=(3, 2, 2),
    ),
]
TIMES = ("eval", "forward", "train")


class PeerVQ(nn.Module):
    """A stand-in for a peer: a tuple of vectors, codes and a loss."""

    shapes: list[tuple[int, ...]] = []

    def __init__(self, dim):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(dim))

    def forward(self, x):
        self.shapes.append(tuple(x.shape))
        return x * 2, torch.zeros(len(x), dtype=torch.int64), x.square().mean()


@pytest.fixture
def run(monkeypatch, capsys):
    monkeypatch.setattr(quantizer_speed, "CASES", TINY)
    monkeypatch.setattr(quantizer_speed, "load_peer", lambda: types.SimpleNamespace(PeerVQ=PeerVQ))

    def main(*argv):
        quantizer_speed.main([*argv, "--rounds", "1"])
        return json.loads(capsys.readouterr().out.splitlines()[-1])

    return main


def test_the_last_line_is_json_with_one_row_per_case(run, tmp_path):
    result = run("--output", str(tmp_path / "new" / "speed.json"))
    assert list(result) == ["benchmark", "unit", "device", "torch", "machine", "rounds", "threads", "peer", "rows"]
    assert result == json.loads((tmp_path / "new" / "speed.json").read_text())
    assert result["peer"] is None and result["rounds"] == 1
    searched, scalar, projection = result["rows"]
    milliseconds = [f"ours_{name}_ms" for name in TIMES]
    assert list(searched) == ["case", "floor_ms", *milliseconds, *[f"ours_{name}" for name in TIMES], "ours_mb"]
    assert list(scalar) == ["case", "floor_ms", *milliseconds, "ours_mb"]
    assert scalar["floor_ms"] is None and searched["floor_ms"] > 0
    assert list(projection) == ["case", "floor_ms", "ours_eval_ms", "ours_eval", "ours_mb"]
    assert searched["ours_eval"] == pytest.approx(searched["ours_eval_ms"] / searched["floor_ms"], rel=0.6)


def test_a_peer_gets_the_same_vectors_in_its_own_layout(run):
    PeerVQ.shapes.clear()
    result = run("--peer", "--cases", "tiny-vq", "tiny-projection")
    assert result["peer"] == "installed"
    searched, projection = result["rows"]
    assert {*PeerVQ.shapes} == {(1, 40, 6), (3, 6, 2, 2)}
    assert {f"peer_{name}_ms" for name in TIMES} | {f"speedup_{name}" for name in TIMES} | {"peer_mb"} <= {*searched}
    assert "speedup_eval" in projection and "speedup_train" not in projection
    x = torch.randn(1, 12, 6)
    assert torch.equal(TINY[2].peer_input(x).permute(0, 2, 3, 1).reshape(1, 12, 6), x)


def test_a_missing_peer_is_said(monkeypatch, capsys):
    monkeypatch.setattr(quantizer_speed, "PEER", "no_such_library")
    assert quantizer_speed.load_peer() is None
    assert "no_such_library cannot be imported" in capsys.readouterr().out


@pytest.mark.parametrize("argv", [["--rounds", "0"], ["--cases", "no-such-case"]])
def test_wrong_arguments_are_refused(argv, capsys):
    with pytest.raises(SystemExit) as caught:
        quantizer_speed.main(argv)
    assert caught.value.code == 2
    assert argv[1] in capsys.readouterr().err


def test_extra_memory_is_the_largest_amount_held_at_once():
    def run():
        first = torch.empty(2_000_000)  # 8 MB, gone before the second
        del first
        torch.empty(1_000_000)

    peak = quantizer_speed.extra_memory(run, torch.device("cpu"))
    assert 8.0 <= peak < 8.1


def test_a_training_step_has_a_gradient_and_updates_the_codebook():
    quantizer = VectorQuantizer(4, 8)
    before = quantizer.codebook(0).clone()
    variants = quantizer_speed.variants_of(lambda: quantizer, torch.randn(1, 30, 4))
    assert list(variants) == list(TIMES)
    variants["eval"]()
    assert torch.equal(quantizer.codebook(0), before)
    quantizer.train()
    variants["train"]()
    assert not torch.equal(quantizer.codebook(0), before)
    assert not any(quantizer._pending)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_every_case_quantizes_vectors_of_its_size(case):
    if case.name == "random-projection-readme":
        assert case.floor == (16, 256, 1024)
        return  # its pseudo-inverse takes seconds
    quantizer = case.make().eval()
    assert quantizer(torch.randn(1, 4, case.dim)).quantized.shape == (1, 4, case.dim)
    if case.floor is not None:
        number, size, num_codes = case.floor
        assert quantizer.num_codes == (num_codes,) * number
        assert quantizer.codebook(0).shape == (num_codes, size)
