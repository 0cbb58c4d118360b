"""Run by test_soft_target_triton.py with TRITON_INTERPRET=1: largest differences from the plain form, one JSON line."""

import json

import torch

from rqtransformer import targets
from rqtransformer.soft_target_triton import cross_entropy_rows, serves

CASES = [  # vocabulary, codes with a target (0: hard codes), type of the logits, block
    (1, 1, torch.float32, 4096),
    (16, 16, torch.float32, 4096),
    (37, 37, torch.float32, 16),
    (37, 20, torch.float32, 16),
    (64, 0, torch.float32, 16),
    (100, 0, torch.bfloat16, 4096),
    (100, 100, torch.bfloat16, 32),
]


def compare(vocabulary: int, num_scores: int, dtype: torch.dtype, special: str) -> dict[str, float]:
    rows, depth = 5, 2
    logits_NDV = (torch.randn(rows, depth, vocabulary) * 5).to(dtype)
    if special == "impossible":  # no weight in the logits, in the first block and elsewhere
        logits_NDV[0, 1, : vocabulary // 2] = float("-inf")
    if special == "ties":
        logits_NDV[:] = 1.5
    logits_nV = logits_NDV[:, 1]
    codes_n = torch.randint(vocabulary, (rows, depth))[:, 1]
    codes_n[0], codes_n[1] = vocabulary - 1, logits_nV[1].argmax()
    scores_nK = torch.randn(rows, num_scores) * 30 if num_scores else None
    if scores_nK is not None and special == "impossible":
        scores_nK = scores_nK[:, : max(1, num_scores // 4)] if vocabulary < 4 else scores_nK.clone()
        logits_NDV[0, 1] = torch.randn(vocabulary) - 1e4 * (torch.arange(vocabulary) < vocabulary // 2)
    target_nK = None if scores_nK is None else scores_nK.softmax(dim=-1)
    expected_3, slope_nV = targets._chunk(logits_nV.float(), codes_n, target_nK, True)
    scale = torch.tensor([0.0, 3.0])[1]
    eps = 0.0 if scores_nK is None else targets.SOFT_EPS
    found = {}
    for name, given in (("gradient", None), ("scaled", scale)):
        gradient_NDV = torch.full_like(logits_NDV, 7.0)
        sums_3 = cross_entropy_rows(logits_nV, codes_n, scores_nK, eps, gradient_NDV[:, 1], given)
        wanted_nV = (slope_nV if given is None else slope_nV * given).to(dtype)
        found[name] = (gradient_NDV[:, 1].float() - wanted_nV.float()).abs().max().item()
        found["outside"] = (gradient_NDV[:, 0] - 7.0).abs().max().item()
    found["sums"] = ((sums_3 - expected_3).abs() / (1 + expected_3.abs())).max().item()
    alone_3 = cross_entropy_rows(logits_nV, codes_n, scores_nK, eps)
    found["without gradient"] = (alone_3 - sums_3).abs().max().item()
    return found


def broken() -> list[bool]:
    """Codes that are none, and numbers that are none, end in a loss that is no number."""
    logits_nV, scores_nK = torch.randn(2, 9), torch.randn(2, 9)
    results = [cross_entropy_rows(logits_nV, torch.tensor([0, code]), None, 0.0) for code in (-1, 9)]
    results.append(cross_entropy_rows(torch.full((2, 9), float("nan")), torch.tensor([0, 1]), scores_nK, 1e-7))
    results.append(cross_entropy_rows(logits_nV, torch.tensor([0, 1]), scores_nK * float("nan"), 1e-7))
    return [bool(sums_3[0].isfinite()) for sums_3 in results]


def whole_loss() -> float:
    """`cross_entropy_per_depth` with the kernel, as on a GPU, beside itself without: value and gradient."""
    logits, codes = torch.randn(2, 3, 3, 4, 21), torch.randint(21, (2, 3, 3, 4))
    soft = targets.SoftTargets(torch.randn(2, 3, 3, 4, 6), [torch.randn(21, 6)] * 4, 0.5)
    results = []
    for use in (False, True):
        targets.use_kernel = lambda trial, device, use=use: use
        given = logits.clone().requires_grad_()
        loss_D, nll_D, accuracy_D = targets.cross_entropy_per_depth(given, codes, soft, chunk=5)
        (loss_D * torch.arange(1.0, 5.0)).sum().backward()
        results.append(torch.cat([loss_D.detach(), nll_D, accuracy_D, given.grad.flatten()]))
    assert serves(logits.flatten(0, 2), codes.flatten(0, 2))
    return (results[0] - results[1]).abs().max().item()


def main() -> None:
    torch.manual_seed(0)
    torch.set_num_threads(1)
    from rqtransformer import soft_target_triton

    rows = []
    for vocabulary, num_scores, dtype, block in CASES:
        soft_target_triton.MAX_BLOCK = block
        for special in ("none", "impossible", "ties"):
            found = compare(vocabulary, num_scores, dtype, special)
            rows.append({"case": [vocabulary, num_scores, str(dtype), block, special], **found})
    print(json.dumps({"rows": rows, "broken": broken(), "whole": whole_loss()}))


if __name__ == "__main__":
    main()
