"""Settings of a vector quantizer.

Legend: H heads (the code depth), E size of a code vector.
"""

from __future__ import annotations

from dataclasses import dataclass

from rqstack.arguments import check_choice, check_count, check_number
from rqstack.quantizers.arithmetic.code_losses import VectorLosses
from rqstack.quantizers.arithmetic.gradient import ESTIMATORS
from rqstack.quantizers.arithmetic.nearest import check_temperature
from rqstack.quantizers.arithmetic.signatures import checks_arguments
from rqstack.quantizers.codebooks.affine import AffineRule
from rqstack.quantizers.codebooks.entry_use import RestartRule

DISTANCES = ("euclidean", "cosine")
CODEBOOKS = ("ema", "learned", "both")
DEAD = RestartRule(below=0.5, relative=True)


@checks_arguments
@dataclass(frozen=True)
class VectorOptions:
    """Settings of a vector quantizer, at one level or alone. Without a start from data and without restarts most
    codebooks collapse to a few codes.

    ValueError for values that are none of these or do not go together.

    Attributes:
        codebook_dim: E; where H * E is not dim, learned projections lead there and back. null: dim / H.
        distance: 'euclidean', or 'cosine' (vectors and code vectors are scaled to length 1, and the loss is between
            those).
        codebook: 'ema' (buffers; `update_codebook()` once per optimizer step), 'learned' (a parameter with a loss
            term), or 'both' (a parameter that moving averages move as well).
        sync_nu: this share of the gradient of the quantized vectors reaches the code vectors in them (the synchronised
            update rule).
        inplace_lr: the code vectors learn by SGD steps of their own with this rate, in turns with the rest of the
            model, whose loss holds them constant. null: not so.
        affine: re-parametrisation of the code vectors. null: none.
        restart: which entries count as unused and get a vector of the step. null: those with less than half of the mean
            use where restart_dead is set and moving averages move the codebook, otherwise none.
        restart_dead: whether there are restarts where `restart` says nothing.
        seed: of the draws of restarts.
        kmeans_init: the first train-mode forward sets the codebook to the k-means of its vectors, over all processes.
        kmeans_iterations: of that.
        estimator: 'straight_through', 'rotation', 'directional' (see `gradient.py`) or 'gumbel', whose gradient is that
            of the mean of the draw; 'gumbel' needs sample_temp.
        sample_temp: in train mode draw the code from softmax(-squared distance / sample_temp). null: take the nearest.
        losses: weights of the terms of the loss.
    """

    codebook_dim: int | None = None
    distance: str = "euclidean"
    codebook: str = "ema"
    sync_nu: float = 0.0
    inplace_lr: float | None = None
    affine: AffineRule | None = None
    restart: RestartRule | None = None
    restart_dead: bool = True
    seed: int = 0
    kmeans_init: bool = True
    kmeans_iterations: int = 10
    estimator: str = "straight_through"
    sample_temp: float | None = None
    losses: VectorLosses = VectorLosses()

    @property
    def restart_rule(self) -> RestartRule | None:
        """The rule in force."""
        by_default = DEAD if self.restart_dead and self.codebook != "learned" else None
        return by_default if self.restart is None else self.restart

    def __post_init__(self) -> None:
        check_choice("distance", self.distance, DISTANCES)
        check_choice("codebook", self.codebook, CODEBOOKS)
        check_choice("estimator", self.estimator, (*ESTIMATORS, "gumbel"))
        check_number("sync_nu", self.sync_nu, 0)
        check_count("kmeans_iterations", self.kmeans_iterations, 0)
        if self.codebook == "ema" and self.losses.orthogonal > 0:
            raise ValueError("orthogonal regularisation trains the code vectors: it needs codebook 'learned' or 'both'")
        if self.codebook == "ema" and self.sync_nu > 0:
            raise ValueError("sync_nu trains the code vectors: it needs codebook 'learned' or 'both'")
        if self.codebook != "learned" and self.affine is not None and self.affine.kind == "learned":
            raise ValueError(
                f"a learned affine map needs codebook 'learned', not {self.codebook!r}; choose kind 'running'"
            )
        if self.estimator == "gumbel" and self.sample_temp is None:
            raise ValueError("estimator 'gumbel' needs sample_temp")
        if self.sample_temp is not None:
            check_temperature(self.sample_temp)
