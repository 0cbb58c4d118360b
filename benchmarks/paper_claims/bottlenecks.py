"""Bottlenecks compared on real images: the same encoder, decoder and bits per image, one row per quantizer.

Every model writes 4 codes of log2(K) bits at each of 4x4 positions.
"""

from __future__ import annotations

from dataclasses import dataclass

from benchmarks.paper_claims.runs import Run, stage1_run
from benchmarks.paper_claims.sizes import Size


@dataclass(frozen=True)
class Bottleneck:
    """One row.

    Attributes:
        kind: `bottleneck_type`.
        options: of the bottleneck, `key=value`.
        shared: one codebook for all depths, where there are codebooks.
        own_weight: the quantizer weights its own loss terms, so that its loss counts in full.
        square: the codes have two levels each of the root of K values, and K follows from them.
    """

    kind: str
    options: tuple[str, ...] = ()
    shared: bool = False
    own_weight: bool = False
    square: bool = False

    def words(self, num_codes: int) -> list[str]:
        """What it changes in the YAML file."""
        words = [
            f"arch.hparams.bottleneck_type={self.kind}",
            f"arch.hparams.shared_codebook={str(self.shared).lower()}",
            *(f"+arch.hparams.bottleneck.{option}" for option in self.options),
        ]
        if self.own_weight:
            words.append("arch.hparams.latent_loss_weight=1.0")
        if self.square:
            side = round(num_codes**0.5)
            words += [f"+arch.hparams.bottleneck.levels=[{side},{side}]"]
        return words


BOTTLENECKS: dict[str, Bottleneck] = {
    "residual, separate": Bottleneck("rq"),
    "plain VQ": Bottleneck("vq"),
    "FSQ": Bottleneck("fsq", square=True, own_weight=True),
    "residual FSQ": Bottleneck("residual_fsq", square=True, own_weight=True),
    "LFQ": Bottleneck("lfq", ("entropy_weight=0.02", "inv_temperature=10.0"), own_weight=True),
    "SimVQ": Bottleneck("simvq", own_weight=True),
    "residual VQ, rotation trick": Bottleneck("residual_vq", ("estimator=rotation",)),
    "residual VQ, DiVeQ": Bottleneck("residual_vq", ("estimator=directional",)),
}
SHARED = "residual, shared"


def bottleneck_runs(size: Size, seed: int) -> dict[str, Run]:
    """Row -> run; the published bottleneck is that of the other claims."""
    runs = {SHARED: stage1_run(size, seed, "rq 4x4x4")}
    for row, bottleneck in BOTTLENECKS.items():
        runs[row] = stage1_run(size, seed, row, *bottleneck.words(size.num_codes))
    return runs
