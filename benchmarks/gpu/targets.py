"""What an H100 or H200 must reach, and whether it did: the one table of targets."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

Results = Mapping[str, Mapping[str, Any]]  # item -> its result


class Target(NamedTuple):
    """A number that is wanted: its value in the results (KeyError: not measured), its bound, and the right side."""

    what: str
    value: Callable[[Results], float]
    bound: float
    at_most: bool = False

    def verdict(self, results: Results) -> tuple[str, str]:
        """(What was measured, met, not met or not measured)."""
        try:
            value = self.value(results)
        except (KeyError, TypeError, ZeroDivisionError):  # an item, or the case in it, has no number
            return "", "not measured"
        met = value <= self.bound if self.at_most else value >= self.bound
        return f"{value:.3g}", "met" if met else "not met"

    @property
    def wanted(self) -> str:
        """The bound as text."""
        return f"{'<=' if self.at_most else '>='} {self.bound:g}"


def _sampler(batch: int, name: str) -> Callable[[Results], float]:
    return lambda results: results["sampler_8x8x4"][f"batch {batch}"][name]


def _times_flat(results: Results) -> float:
    flat = results["sampler_16x16x1"]["batch 200"]["ar_ms_per_sample"]
    return flat / results["sampler_8x8x4"]["batch 200"]["ar_ms_per_sample"]


def _stage1_rate(results: Results) -> float:
    return results["stage1_256"]["bf16 compiled"]["images_per_s"]


def _stage1_gain(results: Results) -> float:
    return _stage1_rate(results) / results["stage1_256"]["fp32"]["images_per_s"]


TARGETS = (
    Target("8x8x4, batch 500: AR, ms per sample", _sampler(500, "ar_ms_per_sample"), 0.8, at_most=True),
    Target("8x8x4, batch 500: share of the roofline", _sampler(500, "roofline_share"), 0.5),
    Target("8x8x4, batch 1: seconds", _sampler(1, "batch_latency_s"), 0.12, at_most=True),
    Target("8x8x4 against 16x16x1, batch 200: times faster", _times_flat, 4.0),
    Target("stage 2, 1.4B, latents: MFU", lambda results: results["stage2_1400m"]["batch 64 latents"]["mfu"], 0.45),
    Target("stage 1, 256 px, bf16 compiled: images/s", _stage1_rate, 220.0),
    Target("stage 1, 256 px: bf16 compiled against fp32 eager", _stage1_gain, 2.5),
    Target(
        "nearest codes: time against product and argmin",
        lambda results: results["quantizers"]["search"]["times_product"],
        1.3,
        at_most=True,
    ),
)
