"""Options of the bottlenecks other than the published one: what may stand under `hparams.bottleneck`.

One dataclass per `bottleneck_type`, in one table. The size E, the code depth D and, where the method does not follow
from its levels, the codebook size K come from `embed_dim`, `code_shape` and `n_embed`. For 'vq' and 'residual_vq' also
`decay`, `shared_codebook` and `restart_unused_codes` keep their published meaning.
"""

from dataclasses import dataclass, field
from typing import Any, Optional

from omegaconf import MISSING


@dataclass
class FSQOptions:
    """levels: values per scalar; their product is K. See `rqstack.quantizers.methods.finite_scalar`."""

    levels: list[int] = MISSING
    preserve_symmetry: bool = False
    noise_dropout: float = 0.0


@dataclass
class FSPOptions:
    """levels: bins per scalar; their product is K. See `rqstack.quantizers.methods.scalar_perturbation`."""

    levels: list[int] = MISSING
    activation: str = "tanh"
    quantize_rate: float = 0.0
    invert: bool = False
    mean_weight: float = 0.1
    variance_weight: float = 0.07
    skewness_weight: float = 0.0
    kurtosis_weight: float = 0.0


@dataclass
class LFQOptions:
    """Weights and temperature of the loss terms. See `rqstack.quantizers.methods.lookup_free`."""

    spherical: bool = False
    scale: float = 1.0
    entropy_weight: float = 0.1
    diversity_weight: float = 1.0
    commitment_weight: float = 0.25
    inv_temperature: float = 100.0
    joint_bits: int = 16


@dataclass
class LatentOptions:
    """levels: learned values per scalar; their product is K. See `rqstack.quantizers.methods.latent_quantization`.

    inplace_lr: the values learn by SGD steps of their own with this rate, in turns with the rest of the model.
    """

    levels: list[int] = MISSING
    commitment_weight: float = 0.1
    quantization_weight: float = 0.1
    inplace_lr: Optional[float] = None


@dataclass
class SimLevelOptions:
    """Size of the frozen vectors, weights of the two halves of the loss. See `rqstack.quantizers.methods.simvq`."""

    codebook_dim: Optional[int] = None
    codebook_weight: float = 1.0
    commitment_weight: float = 0.25


@dataclass
class SimOptions(SimLevelOptions):
    """estimator: 'straight_through', 'rotation' or 'directional'."""

    estimator: str = "straight_through"


@dataclass
class RandomProjectionOptions:
    """codebook_dim: size of the projected vectors. See `rqstack.quantizers.methods.random_projection`."""

    codebook_dim: int = MISSING
    normalize: bool = True


@dataclass
class BinaryOptions:
    """Weight and free part of the divergence from uniform codes. See `rqstack.quantizers.methods.binary_mapper`."""

    kl_weight: float = 1.0
    free_nats: float = 0.6931471805599453


@dataclass
class RestartOptions:
    """Which codebook entries count as unused. See `rqstack.quantizers.RestartRule`."""

    below: float = 1.0
    relative: bool = False
    grace: int = 0
    unused_for: Optional[int] = None


@dataclass
class AffineOptions:
    """Affine re-parametrisation of the codebook. See `rqstack.quantizers.codebooks.affine.AffineRule`."""

    kind: str = "learned"
    groups: int = 1
    lr_scale: float = 1.0
    batch_decay: float = 0.99
    codebook_decay: float = 0.9


@dataclass
class VectorLossOptions:
    """Weights and settings of the loss terms. See `rqstack.quantizers.VectorLosses`."""

    commitment: float = 1.0
    cross_entropy: float = 0.0
    codebook: float = 1.0
    diversity: float = 0.0
    temp: float = 1.0
    orthogonal: float = 0.0
    orthogonal_active: bool = False
    orthogonal_max: Optional[int] = None


@dataclass
class VQOptions:
    """Settings of `rqstack.quantizers.VectorQuantizer`; D is the number of heads.

    restart: without it, `restart_unused_codes: true` stands for the published rule. sync_nu: of the synchronised update
    rule. inplace_lr: the code vectors learn by SGD steps of their own with this rate, in turns with the rest of the
    model. Kept lengths are a library option only: codes alone would not tell the decoder its input.
    """

    codebook_dim: Optional[int] = None
    distance: str = "euclidean"
    codebook: str = "ema"
    sync_nu: float = 0.0
    inplace_lr: Optional[float] = None
    affine: Optional[AffineOptions] = None
    restart: Optional[RestartOptions] = None
    seed: int = 0
    kmeans_init: bool = False
    kmeans_iterations: int = 10
    estimator: str = "straight_through"
    sample_temp: Optional[float] = None
    losses: VectorLossOptions = field(default_factory=VectorLossOptions)


@dataclass
class ResidualOptions:
    """groups: channel groups, each with D / groups levels. See `rqstack.quantizers.methods.residual_stack`.

    quantize_dropout: in training a random level from `dropout_cutoff` (0-based) on is the last; `dropout_multiple`.
    """

    groups: int = 1
    quantize_dropout: bool = False
    dropout_cutoff: int = 0
    dropout_multiple: int = 1


@dataclass
class ResidualVQOptions(ResidualOptions, VQOptions):
    """Those of every level and of the residual stack. See `rqstack.quantizers.ResidualVectorQuantizer`."""

    loss_weights: Optional[list[float]] = None
    beam_width: int = 1
    eval_beam_width: Optional[int] = None


@dataclass
class ImplicitResidualOptions(ResidualOptions):
    """See `rqstack.quantizers.methods.neural_codebook`. hidden, depth: width and number of blocks of the networks."""

    hidden: Optional[int] = None
    depth: int = 4
    codebook_dim: Optional[int] = None
    kmeans_init: bool = False
    estimator: str = "straight_through"
    losses: VectorLossOptions = field(default_factory=VectorLossOptions)
    loss_weights: Optional[list[float]] = None
    beam_width: int = 1
    eval_beam_width: Optional[int] = None


@dataclass
class ResidualFSQOptions(ResidualOptions):
    """levels: values per scalar; their product is K."""

    levels: list[int] = MISSING
    preserve_symmetry: bool = False


@dataclass
class ResidualLFQOptions(ResidualOptions, LFQOptions):
    """Those of every level and of the residual stack."""


@dataclass
class ResidualSimOptions(ResidualOptions, SimLevelOptions):
    """shared: one codebook and map for all levels."""

    shared: bool = False


@dataclass
class HierarchicalOptions:
    """scales: grids from coarse to fine, numbers or [rows, columns]; the last is the latent grid, and code_shape is
    [1, 1, positions of all scales]. See `rqstack.quantizers.methods.multi_scale`."""

    scales: list[Any] = MISSING
    distance: str = "euclidean"
    codebook: str = "ema"
    restart: Optional[RestartOptions] = None
    kmeans_init: bool = False
    blend: float = 0.5
    num_convs: int = 1
    scale_dropout: float = 0.0
    kept_scales: int = 1
    commitment_weight: float = 0.25
    codebook_weight: float = 1.0


BOTTLENECK_OPTIONS = {
    "vq": VQOptions,
    "fsq": FSQOptions,
    "fsp": FSPOptions,
    "lfq": LFQOptions,
    "latent": LatentOptions,
    "simvq": SimOptions,
    "random_projection": RandomProjectionOptions,
    "binary": BinaryOptions,
    "residual_vq": ResidualVQOptions,
    "implicit_residual_vq": ImplicitResidualOptions,
    "residual_fsq": ResidualFSQOptions,
    "residual_lfq": ResidualLFQOptions,
    "residual_simvq": ResidualSimOptions,
    "hierarchical": HierarchicalOptions,
}
SIZE_PER_DEPTH = ("rq", "residual_vq", "implicit_residual_vq")  # those whose n_embed may be a list
