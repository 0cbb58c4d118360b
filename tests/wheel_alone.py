"""Run in an environment that holds the wheel and nothing else of the checkout: `make wheel-test`.

Imports the three libraries, quantizes, and reproduces the greedy codes and an image of golden checkpoints. Uses nothing
but what the wheel asks for, so that a forgotten dependency or file shows here.
"""

from __future__ import annotations

import importlib.metadata
import sys
from importlib.resources import files
from pathlib import Path

import torch
from safetensors.torch import load_file

import rqstack
import rqtransformer
import rqvae
from rqstack.quantizers import ResidualVectorQuantizer
from rqtransformer import load_rqtransformer, sample
from rqvae import load_rqvae

GOLDEN = Path(__file__).resolve().parent / "golden"


def main() -> None:
    """Says what runs here; fails with an assertion."""
    checkout = Path(__file__).resolve().parents[1]
    for package in (rqstack, rqvae, rqtransformer):
        found = Path(package.__file__)
        assert "site-packages" in found.parts, f"{found} is not of the wheel"
        assert checkout not in (Path(entry) for entry in sys.path), "the checkout is on the path"
        assert (files(package) / "py.typed").is_file(), f"{package.__name__} does not say that it is typed"
    assert (files("rqtransformer.native") / "functions.h").is_file(), "sources of the compiled step"

    torch.manual_seed(0)
    quantizer = ResidualVectorQuantizer(16, 32, num_quantizers=4).eval()
    output = quantizer(torch.randn(2, 8, 16))
    torch.testing.assert_close(quantizer.decode(output.codes), output.quantized, rtol=0, atol=0)

    stage1 = load_rqvae(GOLDEN / "rqvae-shared" / "model.pt")
    images = load_file(GOLDEN / "rqvae-shared" / "io.safetensors")
    assert torch.equal(stage1.get_codes(images["x"]), images["eval.codes"])
    stage2 = load_rqtransformer(GOLDEN / "rqtransformer-class" / "model.pt")
    drawn = load_file(GOLDEN / "rqtransformer-class" / "io.safetensors")
    codes = sample(stage2, stage1, drawn["greedy.cond"], top_k=1)
    assert torch.equal(codes, drawn["greedy.codes"])
    torch.testing.assert_close(stage1.decode_code(codes[:1]).detach(), drawn["greedy.image0"], rtol=0, atol=2e-5)

    version = ".".join(map(str, sys.version_info[:3]))
    print(f"rqstack {importlib.metadata.version('rqstack')} alone: Python {version}, torch {torch.__version__}")


if __name__ == "__main__":
    main()
