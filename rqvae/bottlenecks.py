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


@dataclass
class LatentOptions:
    """levels: learned values per scalar; their product is K. See `rqvae.quantizers.latent`."""

    levels: list[int] = MISSING
    commitment_weight: float = 0.1
    quantization_weight: float = 0.1


@dataclass
class SimOptions:
    """Weights of the two halves of the loss. See `rqvae.quantizers.sim`."""

    codebook_weight: float = 1.0
    commitment_weight: float = 0.25


@dataclass
class RandomProjectionOptions:
    """codebook_dim: size of the projected vectors. See `rqvae.quantizers.random_projection`."""

    codebook_dim: int = MISSING
    normalize: bool = True


@dataclass
class BinaryOptions:
    """Weight and free part of the divergence from uniform codes. See `rqvae.quantizers.binary_mapper`."""

    kl_weight: float = 1.0
    free_nats: float = 0.6931471805599453


@dataclass
class ResidualOptions:
    """groups: channel groups, each with D / groups levels. See `rqvae.quantizers.residual_of`."""

    groups: int = 1


@dataclass
class ResidualFSQOptions(ResidualOptions):
    """levels: values per scalar; their product is K."""

    levels: list[int] = MISSING
    preserve_symmetry: bool = False


@dataclass
class ResidualLFQOptions(ResidualOptions, LFQOptions):
    """Those of every level and of the residual stack."""


@dataclass
class ResidualSimOptions(ResidualOptions, SimOptions):
    """shared: one codebook and map for all levels."""

    shared: bool = False


BOTTLENECK_OPTIONS = {
    "fsq": FSQOptions,
    "lfq": LFQOptions,
    "latent": LatentOptions,
    "simvq": SimOptions,
    "random_projection": RandomProjectionOptions,
    "binary": BinaryOptions,
    "residual_fsq": ResidualFSQOptions,
    "residual_lfq": ResidualLFQOptions,
    "residual_simvq": ResidualSimOptions,
}
