"""The comparison benchmark on a few steps: its output, and that methods differ in nothing but the bottleneck."""

import json

import pytest
import torch
from PIL import Image

from benchmarks import quantizer_comparison as comparison
from benchmarks.comparison_methods import METHODS, config_of
from rqvae.bottleneck import BOTTLENECKS, build_quantizer
from tests.repository import ROOT

KEYS = [
    "benchmark",
    "dataset",
    "resolution",
    "steps",
    "batch_size",
    "lr",
    "seed",
    "held_out_images",
    "torch",
    "machine",
    "threads",
    "rows",
]
ROW = ["method", "bottleneck_type", "bits", "mse", "used_fraction", "perplexity", "step_ms"]


def run(capsys, *argv):
    comparison.main(["--steps", "2", "--batch-size", "4", "--held-out-images", "6", *argv])
    return capsys.readouterr().out.splitlines()


def test_every_bottleneck_is_compared_at_the_same_bits():
    assert {method.kind for method in METHODS.values()} == {*BOTTLENECKS}
    for name, method in METHODS.items():
        sizes, (rows, columns, depth) = build_quantizer(config_of(method)).num_codes, method.code_shape
        assert sizes == (() if name == "none" else (256,) * depth)
        assert rows * columns * depth == 64
        assert comparison.bits_of(method) == (None if name == "none" else 512)


def test_two_methods_give_a_table_files_and_a_json_line(capsys, tmp_path):
    lines = run(capsys, "--methods", "none", "vq_kmeans", "--output-dir", str(tmp_path / "out"))
    result = json.loads(lines[-1])
    assert list(result) == KEYS
    assert (result["steps"], result["held_out_images"]) == (2, 6)
    assert [list(row) for row in result["rows"]] == [ROW, ROW]
    bare, vq = result["rows"]
    assert (bare["bits"], bare["used_fraction"], bare["perplexity"]) == (None, None, None)
    assert vq["bits"] == 512 and 0 < vq["used_fraction"] <= 1 and 1 <= vq["perplexity"] <= 256
    assert min(bare["mse"], vq["mse"], bare["step_ms"]) > 0
    assert (tmp_path / "out" / "quantizer_comparison.json").read_text() == lines[-1] + "\n"
    table = (tmp_path / "out" / "quantizer_comparison.md").read_text().splitlines()
    assert len(table) == 4 and table[3].startswith("| vq_kmeans | ")
    assert all(line in lines for line in table)
    assert Image.open(tmp_path / "out" / "quantizer_comparison.png").size[0] > 500


def test_the_table_of_a_document_is_replaced(tmp_path):
    document = tmp_path / "quantizers.md"
    marks = ["<!-- quantizer_comparison: begin -->", "<!-- quantizer_comparison: end -->"]
    document.write_text(f"before\n{marks[0]}\nold\n{marks[1]}\nafter\n")
    row = {"method": "vq", "bits": 512, "mse": 0.125, "used_fraction": 0.5, "perplexity": 90.4, "step_ms": 12.3}
    settings = dict.fromkeys(KEYS, 7) | {"dataset": "digits", "rows": [row]}
    for _ in range(2):
        comparison.write_document(document, settings)
    text = document.read_text()
    assert text.startswith("before\n<!--") and text.endswith("-->\nafter\n") and "old" not in text
    assert text.count("| vq | 0.1250 | 50% | 90 | 12 | 512 |") == 1
    assert (tmp_path / "quantizer_comparison.png").exists()
    (tmp_path / "other.md").write_text("no marks")
    with pytest.raises(ValueError, match="other.md has no lines"):
        comparison.write_document(tmp_path / "other.md", settings)


def test_the_committed_document_has_the_marks():
    text = (ROOT / "docs" / "quantizers.md").read_text()
    assert text.index("<!-- quantizer_comparison: begin -->") < text.index("<!-- quantizer_comparison: end -->")
    assert all(f"`{method.kind}`" in text for method in METHODS.values())


def test_a_run_repeats_with_its_seed(capsys):
    def errors(seed):
        rows = json.loads(run(capsys, "--methods", "rq", "--seed", seed)[-1])["rows"]
        return [(row["mse"], row["perplexity"]) for row in rows]

    assert errors("1") == errors("1") != errors("2")


def test_methods_start_from_the_same_encoder_and_decoder():
    one, other = (comparison.build_model(METHODS[name], 3) for name in ("vq", "lfq"))
    for half in ("encoder", "decoder", "quant_conv", "post_quant_conv"):
        pairs = zip(getattr(one, half).parameters(), getattr(other, half).parameters(), strict=True)
        assert all(torch.equal(*pair) for pair in pairs)


@pytest.mark.parametrize(
    "argv",
    [["--methods", "no_such"], ["--dataset", "mnist"], ["--steps", "0"], ["--batch-size", "99999"],
     ["--dataset", "fashion_mnist", "--data-root", "/no/such/folder"]],
)  # fmt: skip
def test_wrong_arguments_are_one_line_and_exit_code_2(argv, capsys):
    with pytest.raises(SystemExit) as caught:
        comparison.main(argv)
    assert caught.value.code == 2
    assert argv[-1] in capsys.readouterr().err.splitlines()[-1]
