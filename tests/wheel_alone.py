"""Run in an environment that holds the wheel and nothing else of the checkout: `make wheel-test`.

Imports the three libraries, quantizes, reproduces the greedy codes and an image of golden checkpoints, and starts the
console script. Uses nothing but what the wheel asks for, so that a forgotten dependency or file shows here; without
Pillow, which is an extra, the script must say so.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import subprocess
import sys
import tempfile
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

    check_console()
    version = ".".join(map(str, sys.version_info[:3]))
    print(f"rqstack {importlib.metadata.version('rqstack')} alone: Python {version}, torch {torch.__version__}")


def check_console() -> None:
    """The command `rqstack`, beside the Python that runs this."""
    version = importlib.metadata.version("rqstack")
    assert rqstack.__version__ == rqvae.__version__ == rqtransformer.__version__ == version
    assert console("--version").stdout == f"rqstack {version}\n"
    stage1, stage2 = GOLDEN / "rqvae-shared" / "model.pt", GOLDEN / "rqtransformer-class" / "model.pt"
    assert "stage 1 (RQ-VAE)" in console("inspect", stage1).stdout
    with tempfile.TemporaryDirectory() as folder:
        models = ["-v", stage1, "-a", stage2]
        out = [Path(folder) / name for name in ("samples", "fills", "reconstructions")]
        drawn = console("sample", *models, "-n", 2, "--out", out[0])
        if importlib.util.find_spec("PIL") is None:
            assert drawn.returncode == 2 and "pip install rqstack[images]" in drawn.stderr, drawn
            assert not out[0].exists()
            return
        image = out[0] / "00000.png"
        assert image.is_file(), drawn
        filled = console("inpaint", image, "--keep-rows", 4, *models, "--class", 3, "-n", 1, "--out", out[1])
        assert (out[1] / "fill-0.png").is_file(), filled
        codes = load_file(out[1] / "codes.safetensors")
        assert torch.equal(codes["fills"][0][:4], codes["image"][:4])
        given = console("reconstruct", out[0], "-v", stage1, "--out", out[2])
        assert (out[2] / "by_codes" / "00001.png").is_file(), given


def console(*words: object) -> subprocess.CompletedProcess[str]:
    """`rqstack ...` to its end."""
    script = Path(sys.executable).parent / "rqstack"
    return subprocess.run([script, *map(str, words)], capture_output=True, text=True, check=False)


if __name__ == "__main__":
    main()
