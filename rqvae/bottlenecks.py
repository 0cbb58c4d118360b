"""Options of the bottlenecks other than the published one: what may stand under `hparams.bottleneck`.

One dataclass per `bottleneck_type`, in one table. The size E, the code depth D and, where the method does not follow
from its levels, the codebook size K come from `embed_dim`, `code_shape` and `n_embed`.
"""

from dataclasses import dataclass

from omegaconf import MISSING


@dataclass
class FSQOptions:
    """levels: values per scalar; their product is K. See `rqvae.quantizers.finite_scalar`."""

    levels: list[int] = MISSING
    preserve_symmetry: bool = False
    noise_dropout: float = 0.0


@dataclass
class LFQOptions:
    """Weights and temperature of the loss terms. See `rqvae.quantizers.lookup_free`."""

    spherical: bool = False
    scale: float = 1.0
    entropy_weight: float = 0.1
    diversity_weight: float = 1.0
    commitment_weight: float = 0.25
    inv_temperature: float = 100.0
    joint_bits: int = 16


BOTTLENECK_OPTIONS = {
    "fsq": FSQOptions,
    "lfq": LFQOptions,
}
