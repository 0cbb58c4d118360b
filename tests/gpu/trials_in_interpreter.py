"""Run by test_kernel_trials.py with TRITON_INTERPRET=1: the trial of every kernel, and of one that is wrong; JSON."""

import json

import torch

from benchmarks.gpu.items.kernels import TRIALS
from rqstack.quantizers.arithmetic import nearest_triton
from rqtransformer import soft_target_triton
from rqtransformer.fast.kernels import attention_triton, draw_triton, int8_triton
from rqvae import group_norm_triton

CPU = torch.device("cpu")


def nearly(function):
    """The function, one entry of its first tensor off."""

    def wrong(*given, **named):
        out = function(*given, **named)
        first = out if isinstance(out, torch.Tensor) else out[0]
        with torch.no_grad():
            first.view(-1)[-1:].add_(first.view(-1)[-1:].abs() // 2 + 1)
        return out

    return wrong


def main() -> None:
    int8_triton.KNOWN_TYPES = {torch.float16}  # the interpreter multiplies the bits of bf16
    found = {trial.__name__: [trial(CPU)] for trial in TRIALS}
    draw_triton.draw = nearly(draw_triton.draw)
    attention_triton.attend = nearly(attention_triton.attend)
    int8_triton.product = nearly(int8_triton.product)
    soft_target_triton.cross_entropy_rows = nearly(soft_target_triton.cross_entropy_rows)
    nearest_triton.fused_nearest_codes = nearly(nearest_triton.fused_nearest_codes)
    plain = group_norm_triton.group_norm
    group_norm_triton.group_norm = lambda *given, **named: 1.1 * plain(*given, **named)
    for trial in TRIALS:
        found[trial.__name__].append(trial(CPU))
    print(json.dumps(found))


if __name__ == "__main__":
    main()
