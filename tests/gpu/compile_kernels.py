"""Run by test_kernels_compile.py: compiles the kernels for a GPU that need not be there, one JSON line each."""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import triton
from triton.backends.compiler import GPUTarget
from triton.backends.nvidia import compiler as nvidia
from triton.compiler import ASTSource

from rqstack.quantizers.arithmetic import nearest_triton
from rqtransformer import soft_target_triton
from rqtransformer.fast.kernels import attention_triton, draw_triton, int8_triton, norm_triton
from rqvae import group_norm_triton

FP32, BF16 = "fp32", "bf16"


class Form(NamedTuple):
    """A kernel with the types of its arguments, its constants, and the options of its launch.

    A launch tells the compiler which addresses and numbers are multiples of 16 and which numbers are 1. Here all are
    the one, or with `ones` all numbers are the other. `may_spill`: bytes per thread stored outside of registers.
    """

    kernel: Any
    types: list[str]
    constants: dict[str, Any]
    options: dict[str, Any]
    may_spill: int = 64
    ones: bool = False


def draw_forms(number: str) -> Iterator[Form]:
    types = [f"*{number}", "*fp64", "*fp32", "*i64", "i32", "i32", "i32", "fp32", "i32", "i64"]
    for block, rules, may_spill in [
        (2048, (True, True, True, True), 64),
        (128, (False, False, False, False), 64),
        (16384, (True, True, True, True), 1024),
        (16384, (False, False, True, False), 1024),
        (65536, (False, True, True, True), 8192),
    ]:
        constants = dict(zip(("GUIDED", "TEMPERED", "TOP_K", "TOP_P"), rules)) | {"BLOCK": block}
        options = {"num_warps": draw_triton.warps(block), "enable_fp_fusion": False}
        yield Form(draw_triton._draw_kernel, types, constants, options, may_spill)


def attention_forms(number: str) -> Iterator[Form]:
    types = [*[f"*{number}"] * 5, "*i64", "*fp32", f"*{number}", *["i32"] * 9, "fp32"]
    for group, features, alibi in [(1, 64, False), (4, 128, True), (16, 64, True), (1, 96, True)]:
        blocks = attention_triton.blocks(group, features)
        constants = {"GROUP": group, "ALIBI": alibi} | dict(zip(("BLOCK_G", "BLOCK_S", "BLOCK_F"), blocks))
        yield Form(attention_triton._attend_kernel, types, constants, {"num_warps": 4}, 512 if group == 16 else 64)


def norm_forms(number: str) -> Iterator[Form]:
    types = [f"*{number}", "*fp32", *[f"*{number}"] * 3, "*fp32", f"*{number}", "i32", "fp32"]
    for block, switches in [
        (2048, (True, True, True, True)),
        (4096, (False, False, False, False)),
        (8192, (True,) * 4),
    ]:
        constants = dict(zip(("RESIDUAL", "BIAS", "SHIFT", "CENTRED"), switches)) | {"BLOCK": block}
        yield Form(norm_triton._add_and_norm_kernel, types, constants, {"num_warps": norm_triton.warps(block)})


def nearest_forms(number: str) -> Iterator[Form]:
    types = [f"*{number}", "*fp32", "*fp32", "*i64", "i32", "i32", "i32", "i32"]
    blocks = {name: getattr(nearest_triton, name) for name in ("BLOCK_N", "BLOCK_K", "BLOCK_E")}
    options = {"num_stages": nearest_triton.NUM_STAGES}
    for precision in nearest_triton.PRECISIONS:
        yield Form(nearest_triton._nearest_kernel, types, {"PRECISION": precision} | blocks, options, 64)


def soft_target_forms(number: str) -> Iterator[Form]:
    types = [f"*{number}", "*fp32", "*i64", f"*{number}", "*fp32", "*fp32", *["i32"] * 7, "fp32"]
    for block, switches in [(2048, (True, True, True)), (4096, (True, True, False)), (64, (False, False, False))]:
        constants = dict(zip(("SOFT", "GRADIENT", "SCALED"), switches)) | {"BLOCK": block}
        options = {"num_warps": soft_target_triton.NUM_WARPS}
        yield Form(soft_target_triton._rows_kernel, types, constants, options, may_spill=16)


def int8_forms(number: str) -> Iterator[Form]:
    number = "fp16" if number == FP32 else number  # there is none for fp32
    types = [f"*{number}", "*i8", f"*{number}", f"*{number}", "i32", "i32", "i32"]
    blocks = {name: getattr(int8_triton, name) for name in ("BLOCK_R", "BLOCK_O", "BLOCK_I")}
    yield Form(int8_triton._product_kernel, types, blocks, {"num_warps": 4})


GROUP_NORM_TILE = {name: getattr(group_norm_triton, name) for name in ("BLOCK_T", "BLOCK_C")}
GROUP_NORM_STRETCH = {"STRETCH": group_norm_triton.STRETCH} | GROUP_NORM_TILE


def group_moments_forms(number: str) -> Iterator[Form]:
    types = [f"*{number}", "*fp32", "*fp32", "i32", "i32"]
    yield Form(group_norm_triton._moments_kernel, types, GROUP_NORM_STRETCH, {})


def group_apply_forms(number: str) -> Iterator[Form]:
    types = [f"*{number}", *["*fp32"] * 4, f"*{number}", "i32", "i32", "i32"]
    for silu in (True, False):
        yield Form(group_norm_triton._apply_kernel, types, {"SILU": silu} | GROUP_NORM_TILE, {})


def group_backward_forms(number: str) -> Iterator[Form]:
    types = [f"*{number}", f"*{number}", *["*fp32"] * 6, f"*{number}", "i32", "i32", "i32"]
    for silu, sums in [(True, True), (True, False), (False, True), (False, False)]:
        constants = {"SILU": silu, "SUMS": sums} | GROUP_NORM_STRETCH
        yield Form(group_norm_triton._backward_kernel, types, constants, {})


# A kernel that is added is a row that is added.
FORMS = (
    draw_forms,
    attention_forms,
    norm_forms,
    int8_forms,
    nearest_forms,
    soft_target_forms,
    group_moments_forms,
    group_apply_forms,
    group_backward_forms,
)


def compile_form(form: Form, capability: int) -> dict[str, Any]:
    names = form.kernel.arg_names
    signature = dict(zip(names, form.types)) | {name: "constexpr" for name in form.constants}
    assert list(signature) == names, f"arguments of {form.kernel.__name__} are {names}"
    numbers = [name for name, kind in signature.items() if kind == "i32"]
    constants, attributes = dict(form.constants), {}
    if form.ones:
        signature |= dict.fromkeys(numbers, "constexpr")
        constants |= dict.fromkeys(numbers, 1)
    else:
        even = [number for number, kind in enumerate(signature.values()) if kind == "i32" or kind.startswith("*")]
        attributes = {(number,): [["tt.divisibility", 16]] for number in even}
    source = ASTSource(fn=form.kernel, signature=signature, constexprs=constants, attrs=attributes)
    made = triton.compile(source, target=GPUTarget("cuda", capability, 32), options=form.options)
    return {
        "kernel": form.kernel.__name__,
        "capability": capability,
        "types": form.types[0],
        "ones": form.ones,
        **{"constants": form.constants, "shared": made.metadata.shared, "warps": made.metadata.num_warps},
        "cubin": len(made.asm["cubin"]),
        **registers(made.asm["ptx"]),
        "may_spill": form.may_spill,
    }


def registers(ptx: str) -> dict[str, int]:
    """Registers and bytes spilled per thread, as a bundled ptxas tells them that knows the version of the text."""
    bundled = Path(nvidia.__file__).parent / "bin"
    architecture = re.findall(r"^\.target (\w+)", ptx, re.M)[0]
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "kernel.ptx")
        file.write_text(ptx)
        words = ["-v", f"--gpu-name={architecture}", str(file), "-o", str(Path(folder, "cubin"))]
        programs = sorted(bundled.glob("ptxas*"))
        runs = [subprocess.run([str(program), *words], capture_output=True, text=True) for program in programs]
    told = [run.stderr for run in runs if run.returncode == 0]
    if not told:
        raise RuntimeError(runs[0].stderr)
    return {
        "registers": int(re.findall(r"Used (\d+) registers", told[0])[0]),
        "spilled": sum(map(int, re.findall(r"(\d+) bytes spill stores", told[0]))),
    }


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--quick", action="store_true", help="the first form of each kernel, in fp32, for sm_90")
    parser.add_argument("--capability", type=int, default=90)
    arguments = parser.parse_args()
    for forms in FORMS:
        for number in (FP32,) if arguments.quick or forms is nearest_forms else (FP32, BF16):
            first, *others = forms(number)
            for form in [first] if arguments.quick else [first._replace(ones=True), first, *others]:
                print(json.dumps(compile_form(form, arguments.capability)), flush=True)


if __name__ == "__main__":
    main()
