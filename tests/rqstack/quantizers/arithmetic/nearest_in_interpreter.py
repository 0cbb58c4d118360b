"""Run by test_nearest_triton.py with TRITON_INTERPRET=1: the GPU kernel against the tiled search, one JSON line."""

import json
import sys

import torch

from rqstack.quantizers.arithmetic import nearest_triton
from rqstack.quantizers.arithmetic.nearest import nearest_codes, squared_norms


def agreement(num_vectors: int, num_codes: int, dim: int, whole_numbers: bool, processors: int, precision: str) -> dict:
    """How many rows differ, and how many have more than one nearest code. Whole numbers make every sum exact."""
    if whole_numbers:
        x, weight = torch.randint(-2, 3, (num_vectors, dim)).float(), torch.randint(-2, 3, (num_codes, dim)).float()
    else:
        x, weight = torch.randn(num_vectors, dim), torch.randn(num_codes, dim)
    nearest_triton._processors = lambda device: processors
    fused = nearest_triton.fused_nearest_codes(x, weight, squared_norms(weight), precision)
    distance = squared_norms(weight) - 2 * x @ weight.T
    ties = (distance == distance.amin(1, keepdim=True)).sum(1) > 1
    return {
        "differ": int((fused != nearest_codes(x, weight)).sum()),
        "rows": num_vectors,
        "programs": -(-num_codes // nearest_triton.split(num_vectors, num_codes, processors)[1]),
        "ties": int(ties.sum()),
        "dtype": str(fused.dtype),
        "distinct": int(fused.unique().numel()),
    }


if __name__ == "__main__":
    torch.manual_seed(0)
    cases = json.loads(sys.argv[1])
    print(json.dumps([agreement(*case) for case in cases]))
