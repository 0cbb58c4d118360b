"""Run by test_draw_triton.py with TRITON_INTERPRET=1: the kernel against the rules of the draw, one JSON line."""

import itertools
import json
import sys

import torch
from torch import Tensor

from rqtransformer import native
from rqtransformer.decoding import truncation
from rqtransformer.decoding.logits import guide
from rqtransformer.draw_settings import DrawSettings
from rqtransformer.fast.kernels.draw_triton import draw, serves

LARGEST = 1 - 2.0**-53
SETTINGS = [
    DrawSettings(),
    DrawSettings(top_k=1),
    DrawSettings(top_k=7),
    DrawSettings(top_k=10**6),
    DrawSettings(top_p=1e-9),
    DrawSettings(top_p=0.1),
    DrawSettings(top_p=1 - 1e-9),
    DrawSettings(temperature=0.7, top_k=40, top_p=0.9),
    DrawSettings(temperature=1e-3, top_p=0.5),
    DrawSettings(temperature=1e4, top_k=3),
]


def plain(logits_BV: Tensor, uniform_B: Tensor, settings: DrawSettings) -> tuple[Tensor, Tensor]:
    """The codes of the form that a GPU takes, and those that stay, with their cumulated probability (fp64)."""
    scores_BV = logits_BV.float() / settings.temperature
    vocabulary = scores_BV.shape[1]
    top_k = None if settings.top_k is None or settings.top_k >= vocabulary else settings.top_k
    if top_k is not None or settings.top_p is not None:
        kept_BV = truncation.kept_codes(scores_BV, top_k, settings.top_p)
        scores_BV = scores_BV.masked_fill(~kept_BV, float("-inf"))
    codes_B = truncation.invert_cdf(scores_BV.softmax(dim=-1), uniform_B)
    return codes_B, scores_BV.double().softmax(dim=-1).cumsum(dim=-1)


def wrong(logits_BV: Tensor, uniform_B: Tensor, settings: DrawSettings) -> list[str]:
    """Where the kernel draws another code though the uniform number lies far from every boundary."""
    codes_B = draw(logits_BV, uniform_B, settings)
    assert codes_B.dtype == torch.int64
    plain_B, cumulated_BV = plain(logits_BV, uniform_B, settings)
    near_B = (cumulated_BV - uniform_B.double().unsqueeze(1)).abs().amin(dim=1) < 1e-6
    found = [("plain", plain_B, near_B)]
    if native.serves(logits_BV.float()):  # sums in fp64 like the kernel: what is near 0 or 1 must be right, too
        near_B = near_B & (uniform_B > 0) & (uniform_B < LARGEST)
        found.append(("native", native.draw(logits_BV.float(), uniform_B, settings), near_B))
    return [
        f"{name} {settings} {tuple(logits_BV.shape)} {logits_BV.dtype}: {codes_B.tolist()} {judge_B.tolist()}"
        for name, judge_B, excused_B in found
        if (codes_B != judge_B)[~excused_B].any()
    ]


def logits_of(vocabulary: int) -> dict[str, Tensor]:
    """Rows (B, V) by kind."""
    lone = torch.full((3, vocabulary), float("-inf"))
    lone[[0, 1, 2], [0, vocabulary // 2, vocabulary - 1]] = torch.tensor([-3.0, 0.0, 50.0])
    return {
        "random": torch.randn(6, vocabulary) * 4,
        "half": (torch.randn(4, vocabulary) * 2).bfloat16(),  # with ties
        "ties": torch.randint(-3, 4, (6, vocabulary)).float(),
        "equal": torch.full((4, vocabulary), -2.5),
        "zeros": torch.zeros(2, vocabulary) * torch.tensor([[1.0], [-1.0]]),
        "lone": lone,
        "some": torch.randn(4, vocabulary)
        .masked_fill(torch.rand(4, vocabulary) < 0.5, float("-inf"))
        .index_fill(1, torch.tensor([vocabulary - 1]), 0.25),
    }


def all_wrong(vocabularies: list[int], every: int) -> list[str]:
    """Of all kinds of rows with all settings; `every` 9 takes one of 9 such pairs, as the interpreter is slow."""
    found = []
    pairs = itertools.product(vocabularies, range(len(SETTINGS)), logits_of(1))
    for vocabulary, number, kind in itertools.islice(pairs, 0, None, every):
        logits_BV = logits_of(vocabulary)[kind]
        uniform_B = torch.rand(len(logits_BV), dtype=torch.float64)
        uniform_B[0], uniform_B[-1] = 0.0, LARGEST
        found += [f"{kind}: {line}" for line in wrong(logits_BV, uniform_B, SETTINGS[number])]
    return found


def guided_wrong() -> list[str]:
    """Guided logits, a scale at a time."""
    found = []
    for scale, dtype in ((0.0, torch.float32), (1.0, torch.bfloat16), (3.7, torch.float32)):
        both = (torch.randn(6, 50) * 2).to(dtype)
        uniform_B, settings = torch.rand(3, dtype=torch.float64), DrawSettings(temperature=0.9, top_k=20, top_p=0.8)
        scale_1 = torch.tensor([scale])
        assert serves(both, uniform_B, settings, scale_1)
        guided = guide(*both.float().chunk(2), scale_1)
        if draw(both, uniform_B, settings, scale_1).tolist() != plain(guided, uniform_B, settings)[0].tolist():
            found.append(f"{scale} {dtype}")
    return found


def rows_of_views_differ() -> bool:
    """Rows that do not lie one after the other, one row, no row."""
    wide, uniform_B, settings = torch.randn(4, 60), torch.rand(4, dtype=torch.float64), DrawSettings(top_p=0.7)
    view = wide[:, 10:43]
    assert serves(view, uniform_B, settings) and len(draw(view[:0], uniform_B[:0], settings)) == 0
    whole = draw(view.contiguous(), uniform_B, settings)
    apart = torch.cat([draw(view[i : i + 1], uniform_B[i : i + 1], settings) for i in range(4)])
    return not torch.equal(draw(view, uniform_B, settings), whole) or not torch.equal(apart, whole)


def broken_rows() -> list[int]:
    """Of rows that are not a distribution."""
    rows = torch.randn(4, 20)
    rows[0], rows[1, 3], rows[2, 4], rows[3, 5:] = float("-inf"), float("nan"), float("inf"), float("nan")
    uniform_B = torch.rand(4, dtype=torch.float64)
    return [code for settings in SETTINGS[::4] for code in draw(rows, uniform_B, settings).tolist()]


def codes_at_boundaries() -> list[list[int]]:
    """Equal weights make every sum exact: uniform numbers, then shares p, that are boundaries of the distribution."""
    eighths_B = torch.arange(8, dtype=torch.float64) / 8
    largest_B = torch.full((1,), LARGEST, dtype=torch.float64)
    by_share = [draw(torch.zeros(1, 10), largest_B, DrawSettings(top_p=p)) for p in (0.1, 0.3, 0.7)]
    return [draw(torch.zeros(8, 8), eighths_B, DrawSettings()).tolist(), torch.cat(by_share).tolist()]


if __name__ == "__main__":
    torch.manual_seed(0)
    print(
        json.dumps(
            {
                "wrong": all_wrong(json.loads(sys.argv[1]), int(sys.argv[2])),
                "guided": guided_wrong(),
                "views": rows_of_views_differ(),
                "broken": broken_rows(),
                "boundaries": codes_at_boundaries(),
            }
        )
    )
