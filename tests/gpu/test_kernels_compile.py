"""Every Triton kernel is compiled to machine code for two GPUs, which needs none: what the interpreter lets pass, the
compiler may refuse. What ptxas says of registers and spills is held to a limit.

Where the kernels run the sizes are those of the published models.
"""

from __future__ import annotations

import ast
import importlib.util
import json
import re
from pathlib import Path

import pytest

from tests.commands import succeed
from tests.repository import ROOT

pytestmark = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="a CPU build of torch")
SCRIPT = Path(__file__).with_name("compile_kernels.py")
KERNEL = re.compile(r"_kernel$")


def compiled(tmp_path: Path, *which: str, timeout: float = 290) -> list[dict]:
    done = succeed(SCRIPT, *which, timeout=timeout, TRITON_CACHE_DIR=str(tmp_path / "cache"))
    return [json.loads(line) for line in done.out.splitlines()]


def check(rows: list[dict]) -> None:
    for row in rows:
        assert row["cubin"] > 0, row
        assert row["shared"] <= 48 * 1024, row
        assert row["spilled"] <= row["may_spill"], row


def test_every_kernel_compiles_for_a_recent_gpu(tmp_path):
    rows = compiled(tmp_path, "--quick")
    check(rows)
    assert {row["kernel"] for row in rows} == kernels_of_the_repository()


@pytest.mark.slow
@pytest.mark.timeout(2000)
@pytest.mark.parametrize("capability", ["80", "90"])
def test_every_form_of_every_kernel_compiles(tmp_path, capability):
    check(compiled(tmp_path, "--capability", capability, timeout=1900))


def kernels_of_the_repository() -> set[str]:
    """Functions under `triton.jit` that are launched, by name."""
    found = set()
    for package in ("rqstack", "rqvae", "rqtransformer", "training", "evaluation"):
        for file in (ROOT / package).rglob("*.py"):
            text = file.read_text()
            if "triton.jit" in text:
                names = [node.name for node in ast.walk(ast.parse(text)) if isinstance(node, ast.FunctionDef)]
                found |= {name for name in names if KERNEL.search(name)}
    return found
