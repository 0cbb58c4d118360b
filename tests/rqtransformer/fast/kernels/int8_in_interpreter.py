"""Run by test_int8_triton.py with TRITON_INTERPRET=1: the kernel against the expanded product, one JSON line."""

import json
from unittest import mock

import torch

from rqtransformer.fast import packing
from rqtransformer.fast.kernels import int8_triton
from rqtransformer.fast.kernels.int8_triton import product, serves
from rqtransformer.fast.packing import PackedLinear
from rqtransformer.fast.weight_format import WeightFormat


def main() -> None:
    torch.manual_seed(0)
    far, called = {}, []
    for rows, inputs, outputs in ((1, 128, 16), (3, 200, 33), (64, 17, 70), (20, 300, 1)):
        x, weight = torch.randn(rows, inputs).half(), torch.randint(-127, 128, (outputs, inputs), dtype=torch.int8)
        scale = (torch.rand(outputs) / 100).half()
        assert serves(x, weight, scale)
        exact = x.double() @ (weight.double() * scale.double().unsqueeze(1)).T
        together = product(x, weight, scale)
        far[str((rows, inputs, outputs))] = ((together - exact).abs() / exact.abs().clamp_min(0.1)).max().item()
        for row_1I, row_O in list(zip(x.split(1), together))[:4]:
            assert torch.equal(product(row_1I, weight, scale)[0], row_O)
    linear = PackedLinear(torch.randn(24, 40), torch.randn(24), WeightFormat(torch.float16, "int8"))
    x = torch.randn(2, 3, 40).half()
    expanded = linear(x)
    with (
        mock.patch.object(packing, "use_kernel", lambda trial, device: True),
        mock.patch.object(int8_triton, "product", lambda *given: called.append(1) or product(*given)),
    ):
        packed = (linear(x) - expanded).abs().max().item()
        linear(torch.randn(65, 40).half())
    print(json.dumps({"far": far, "packed": packed, "called": len(called)}))


if __name__ == "__main__":
    main()
