"""`python -m measure_throughput`: published sizes, costs against counted operations, rows, files and errors."""

import dataclasses
import importlib
import json
import re
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.flop_counter import FlopCounterMode

from measure_throughput import __main__ as program
from measure_throughput import experiment as settings
from measure_throughput import measure as measuring
from measure_throughput import memory, presets, roofline
from measure_throughput.cost import decoding_cost
from measure_throughput.experiment import Experiment
from measure_throughput.figure import draw_figure
from measure_throughput.measure import measure
from measure_throughput.roofline import Roofline, measure_roofline
from rqtransformer import RQTransformer, native, sample
from rqtransformer.decoding import Decoder
from rqtransformer.fast import packing
from rqvae import RQVAE
from tests.commands import run

LINE = Roofline(flops=1e9, bytes=1e9)


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch) -> Experiment:
    """The real program at a size that takes a moment: 4 x 4 code maps of 64 x 64 images."""
    monkeypatch.setattr(presets, "RESOLUTION", 64)
    monkeypatch.setattr(presets, "CHANNEL_MULTIPLIERS", {16: [1, 1, 1, 1, 1]})
    monkeypatch.setitem(presets.TRANSFORMERS, "small", presets.Sizes(32, 2, 2, 1, 2))
    return Experiment(f=16, d=2, c=8, model="small", batch_size=3, n_loop=2, device="cpu", dtype="float32")


@pytest.mark.parametrize(
    ("model", "millions"),
    [
        ("small", 97.5),
        ("medium", 371.1),
        ("large", 820.9),
        ("huge", 1387.5),
        ("vqgan_large", 802.6),
        ("vqgan_huge", 1387.8),
    ],
)
def test_sizes_of_the_published_models(model, millions):
    factor, depth, num_codes = presets.ONLY_WITH.get(model, (32, 4, 16384))
    with torch.device("meta"):
        stage1 = RQVAE(presets.tokenizer_config(factor, depth, num_codes))
        config = presets.transformer_config(model, tuple(stage1.config.code_shape), num_codes)
        stage2 = RQTransformer(config)
    assert round(sum(parameter.numel() for parameter in stage2.parameters()) / 1e6, 1) == millions
    assert tuple(stage1.config.code_shape) == (256 // factor, 256 // factor, depth)


@pytest.mark.parametrize("depth", [1, 3])
def test_cost_counts_the_operations_that_sampling_runs(tiny, depth, monkeypatch):
    # the counter does not know compiled code, nor oneDNN's products
    monkeypatch.setattr(native, "serves", lambda tensor: False)
    monkeypatch.setattr(packing, "_can_block", lambda weight: False)
    stage1, stage2 = measuring.build_models(dataclasses.replace(tiny, d=depth))
    with FlopCounterMode(display=False) as counter:
        sample(stage2, stage1, torch.zeros(3, dtype=torch.long))
    expected = decoding_cost(stage2, 3, 4).flops
    # the counter sees attention or not, depending on how it runs; it is the smaller part
    products = expected - 2 * 3 * 2 * _attention_values(stage2)
    assert products <= counter.get_total_flops() <= expected


def _attention_values(model: RQTransformer) -> int:
    config = model.config
    body = config.body.n_layer * sum(range(1, config.block_size_cond + model.num_positions))
    head = config.head.n_layer * sum(range(1, model.depth + 1)) * model.num_positions
    return config.embed_dim * (body + head)


def test_bytes_grow_with_the_batch_by_the_caches_only(tiny):
    _, stage2 = measuring.build_models(tiny)
    one, two, three = (decoding_cost(stage2, size, 4) for size in (1, 2, 3))
    assert three.bytes - two.bytes == two.bytes - one.bytes > 0
    assert two.flops == 2 * one.flops
    assert decoding_cost(stage2, 2, 2).bytes == two.bytes / 2


def test_row_of_a_measurement(tiny):
    row = measure(tiny, LINE)
    assert row["case"] == "small 4x4x2 c=8"
    assert row["ms_per_sample"] == pytest.approx(row["ms_per_sample_ar"] + row["ms_per_sample_decode"])
    assert row["codes_per_s"] == pytest.approx(1e3 * 4 * 4 * 2 / row["ms_per_sample_ar"])
    assert row["roofline_share"] == max(row["flops_bound_share"], row["bytes_bound_share"]) > 0
    assert row["batch_latency_s"] * 1e3 == pytest.approx(3 * row["ms_per_sample_ar"])


@pytest.fixture
def slow_batches(monkeypatch):
    """Every batch takes four seconds of a clock that only these calls move."""
    drawn = []

    def seconds(run, device):
        drawn.append(run())
        return 2.0

    monkeypatch.setattr(measuring, "seconds", seconds)
    return drawn


@pytest.mark.parametrize(("samples", "batches"), [(0, 3), (3, 3), (15, 5)])
def test_a_loop_is_cut_off_where_the_number_of_samples_is_not_given(
    tiny, slow_batches, monkeypatch, capsys, samples, batches
):
    monkeypatch.setattr(settings.Experiment, "batches_per_loop", property(lambda self: batches if samples else 334))
    row = measure(dataclasses.replace(tiny, samples=samples), LINE)
    assert len(slow_batches) == 2 * tiny.n_loop * batches
    assert row["batch_latency_s"] == 2.0
    told = capsys.readouterr().err.splitlines()
    assert len(told) == tiny.n_loop
    cut = " of 1002: 10 s were over" if not samples else ""
    assert told[0] == f"small 4x4x2 c=8, batch 3: loop 1/2, 1333 ms per sample, {3 * batches} samples{cut}"


def test_the_help_says_what_every_key_means():
    ended = run("-m", "measure_throughput", "--help")
    assert all(f"{field.name}" in ended.out for field in dataclasses.fields(Experiment))
    assert "cut off after 10 seconds" in " ".join(ended.out.split())


def test_out_of_memory_is_a_row(tiny, monkeypatch):
    def fail(*args, **kwargs):
        raise torch.OutOfMemoryError("out of memory")

    monkeypatch.setattr(measuring, "sample", fail)
    assert measure(tiny, LINE) == {"case": "small 4x4x2 c=8", "batch_size": 3, "error": "out of memory"}


def test_a_compiler_that_fails_is_one_line(tiny, monkeypatch):
    failure = type("InductorError", (RuntimeError,), {"__module__": "torch._inductor.exc"})

    def fail(*args, **kwargs):
        raise failure("InvalidCxxCompiler: no compiler\n\nSet TORCHDYNAMO_VERBOSE=1 for more\n")

    monkeypatch.setattr(measuring, "decode_in_batches", fail)
    with pytest.raises(ValueError, match="^compile=true does not work here: InvalidCxxCompiler: no compiler$"):
        measure(dataclasses.replace(tiny, compile=True), LINE)
    with pytest.raises(failure):
        measure(tiny, LINE)


@pytest.mark.parametrize("where", ["sample", "build_models"])
def test_what_the_allocator_of_the_cpu_says_is_a_row_too(tiny, monkeypatch, where):
    monkeypatch.setattr(measuring, where, lambda *args, **kwargs: torch.empty(2**58))  # more than there is anywhere
    assert measure(tiny, LINE)["error"] == "out of memory"


def test_peak_memory_is_that_of_the_row():
    device = torch.device("cpu")
    memory.reset_peak(device)
    before = memory.peak_mb(device)
    torch.ones(2**27, dtype=torch.uint8)  # 134 MB, written to, and let go
    assert memory.peak_mb(device) - before > 120
    if (memory.PROCESS / "clear_refs").exists():
        memory.reset_peak(device)
        assert memory.peak_mb(device) - before < 60


def test_peak_memory_where_the_system_does_not_tell(monkeypatch, tmp_path):
    monkeypatch.setattr(memory, "PROCESS", tmp_path / "none")
    memory.reset_peak(torch.device("cpu"))
    assert memory.peak_mb(torch.device("cpu")) > 10


@pytest.fixture
def peer(monkeypatch, tmp_path) -> str:
    """Stands in for the package: notes nothing, draws nothing; `FAIL` runs out of memory."""
    (tmp_path / "rq_transformer.py").write_text(
        "import torch\nFAIL = False\n"
        "class RQTransformer(torch.nn.Module):\n"
        "    def __init__(self, **sizes):\n        super().__init__()\n        RQTransformer.sizes = sizes\n"
        "    def generate(self, default_batch_size):\n        return torch.empty(2**58 if FAIL else 1)\n"
    )
    monkeypatch.delitem(sys.modules, "rq_transformer", raising=False)
    monkeypatch.syspath_prepend(str(tmp_path))
    return "rq_transformer"


def test_peer_is_measured_at_the_same_sizes(tiny, peer):
    row = measure(dataclasses.replace(tiny, peer=peer), LINE)
    assert row["peer_ms_per_sample_ar"] > 0
    module = sys.modules.pop(peer)
    assert module.RQTransformer.sizes == {
        "num_tokens": 8,
        "dim": 32,
        "max_spatial_seq_len": 16,
        "depth_seq_len": 2,
        "spatial_layers": 2,
        "depth_layers": 1,
        "dim_head": 16,
        "heads": 2,
    }


def test_peer_out_of_memory_leaves_our_numbers(tiny, peer):
    importlib.import_module(peer).FAIL = True
    row = measure(dataclasses.replace(tiny, peer=peer), LINE)
    sys.modules.pop(peer)
    assert row["peer_error"] == "out of memory"
    assert row["ms_per_sample"] > 0


def test_a_peer_that_is_not_installed_is_named_before_anything_runs(tiny, monkeypatch):
    monkeypatch.setattr(settings.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match="peer=rq_transformer: install RQ-transformer first"):
        dataclasses.replace(tiny, peer="rq_transformer").check()


def test_int8_weights_are_read_once_as_bytes(tiny):
    _, stage2 = measuring.build_models(tiny)
    dense, int8 = decoding_cost(stage2, 3, 4), decoding_cost(stage2, 3, 4, 1)
    caches = decoding_cost(stage2, 4, 4).bytes - dense.bytes
    assert int8.flops == dense.flops
    assert int8.bytes - 3 * caches == pytest.approx((dense.bytes - 3 * caches) / 4)


def test_cache_bytes_are_those_of_the_caches(tiny):
    """Written: every place of both caches once, those of the head once per position."""
    _, stage2 = measuring.build_models(tiny)
    with torch.no_grad(), stage2.decoding_mode():
        nothing = torch.empty(3, 0, stage2.depth, dtype=torch.long)
        books = torch.zeros(8, presets.CODE_DIM)
        decoder = Decoder(
            stage2,
            SimpleNamespace(codebook=lambda depth: books),
            stage2.condition_ids(torch.zeros(3, dtype=torch.long), 3, torch.device("cpu")),
            nothing,
            torch.float32,
        )
    body, head = decoder._body_cache.nbytes, decoder.head.cache.nbytes
    places, depth = decoder._body_cache.max_length, stage2.depth
    # a place is written once and read by every step from then on
    read = body * (places + 1) / 2 + head * stage2.num_positions * (depth + 1) / 2
    per_sample = decoding_cost(stage2, 4, 4).bytes - decoding_cost(stage2, 3, 4).bytes
    assert 3 * per_sample == read + body + head * stage2.num_positions


def test_other_errors_are_not_taken_for_a_lack_of_memory(tiny, monkeypatch):
    def fail(*args, **kwargs):
        raise RuntimeError("a defect")

    monkeypatch.setattr(measuring, "sample", fail)
    with pytest.raises(RuntimeError, match="a defect"):
        measure(tiny, LINE)


def test_sweep_writes_json_and_picture(tiny, monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(program, "SWEEP_SHAPES", ((16, 1), (16, 2)))
    monkeypatch.setattr(roofline, "measure_roofline", lambda device, dtype: LINE)
    words = "--sweep --batches 1 2 f=16 d=1 c=8 model=small n_loop=1 warmup=0 device=cpu dtype=float32".split()
    monkeypatch.setattr(sys, "argv", ["measure_throughput", *words, "--output-dir", str(tmp_path)])
    program.main()
    printed = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert printed["settings"] == {
        **dataclasses.asdict(Experiment()),
        "f": 16,
        "d": 1,
        "c": 8,
        "model": "small",
        "n_loop": 1,
        "warmup": 0,
        "device": "cpu",
        "dtype": "float32",
    }
    assert printed == json.loads((tmp_path / "throughput.json").read_text(encoding="utf-8"))
    assert [(row["case"], row["batch_size"]) for row in printed["rows"]] == [
        ("small 4x4x1 c=8", 1),
        ("small 4x4x1 c=8", 2),
        ("small 4x4x2 c=8", 1),
        ("small 4x4x2 c=8", 2),
    ]
    with Image.open(tmp_path / "throughput.png") as picture:
        assert len(picture.convert("RGB").getcolors(maxcolors=2**20)) > 3


def test_bars_are_proportional_to_the_times(tmp_path):
    rows = [
        {"case": "a", "batch_size": 1, "ms_per_sample": 10.0, "ms_per_sample_ar": 10.0},
        {"case": "b", "batch_size": 1, "ms_per_sample": 5.0, "ms_per_sample_ar": 5.0},
        {"case": "c", "batch_size": 1, "error": "out of memory"},
    ]
    draw_figure(rows, tmp_path / "bars.png", "title")
    with Image.open(tmp_path / "bars.png") as picture:
        image = picture.convert("RGB")
    pixels = np.asarray(image)
    blue = (pixels == (31, 119, 180)).all(axis=2)  # of the dark part, which is all of it here
    lengths = blue.sum(axis=1)
    starts = np.flatnonzero(np.diff((lengths > 100).astype(int)) == 1)  # the legend is shorter
    first, second = (lengths[start + 4] for start in starts)  # the third has no bar
    assert first == pytest.approx(2 * second, abs=4)


def test_roofline_is_measured():
    line = measure_roofline(torch.device("cpu"), torch.float32, rounds=1)
    assert line.flops > 1e8
    assert line.bytes > 1e7


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["f=12"], "f=12 is not one of 8, 16, 32"),
        (["model=giant"], "model='giant' is not one of small, medium"),
        (["model=vqgan_huge"], "model=vqgan_huge exists for f=16 d=1 c=16384 only, not f=32 d=4 c=16384"),
        (["batch_size=x"], "batch_size"),
        (["batch=3"], "unknown key 'batch'; did you mean 'batch_size'?"),
        (["dtype=int8"], "dtype='int8' is not one of auto, float32"),
        (["weights=int4"], "weights='int4' is not one of dense, int8"),
        (["decode_batch=-1"], "decode_batch=-1 at least 0"),
        (["warmup=6"], "warmup=6 must be at least 0 and below n_loop=6"),
        (["device=tpu9"], "device='tpu9'"),
        (["peer=x"], "peer='x' is not one of rq_transformer"),
        (["batch_size=0"], "batch_size=0"),
        (["device=cuda:99"], "device='cuda:99': there are"),
        (["--batches", "3"], "--batches 3 is for --sweep"),
    ],
)
def test_wrong_words_are_refused_before_anything_runs(words, message, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["measure_throughput", *words])
    with pytest.raises(ValueError, match=re.escape(message)) as error:
        program.main()
    assert len(str(error.value).splitlines()) == 1


def test_an_error_ends_with_exit_code_2_and_one_line():
    assert run("-m", "measure_throughput", "f=12") == (2, "", "error: f=12 is not one of 8, 16, 32\n")
