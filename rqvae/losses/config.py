"""Configuration of the stage-1 losses: the `gan` section of a stage-1 YAML file, under its published field names."""

from dataclasses import dataclass, field
from typing import Any, Optional


@dataclass
class DiscriminatorConfig:
    """`gan.disc.arch`.

    in_channels: of the images; None: those of the autoencoder. `sync_batchnorm` is ours: batch statistics over all
    ranks instead of one rank's images.
    """

    in_channels: Optional[int] = None
    num_layers: int = 2
    use_actnorm: bool = False
    ndf: int = 64
    spectral_norm: bool = False
    sync_batchnorm: bool = False

    @property
    def norm(self) -> str:
        """Name of the normalisation layer: 'batch', 'act' or 'sync'."""
        if self.use_actnorm and self.sync_batchnorm:
            raise ValueError("gan.disc.arch: use_actnorm and sync_batchnorm exclude each other, set only one of them")
        if self.use_actnorm:
            return "act"
        return "sync" if self.sync_batchnorm else "batch"


@dataclass
class DiscConfig:
    """`gan.disc`. Without an `optimizer` section the discriminator is trained like the autoencoder."""

    arch: DiscriminatorConfig = field(default_factory=DiscriminatorConfig)
    optimizer: Any = None


@dataclass
class GANLossConfig:
    """`gan.loss`.

    Published: `disc_loss`, `gen_loss` (names in `rqvae.losses.adversarial`), `disc_weight`, `perceptual_weight`,
    `disc_start` (epochs). Ours: `disc_start_step` (optimizer steps, replaces `disc_start`), `gen_start_step` (when the
    generator first sees the discriminator; default: together with it), `gen_ramp_steps` (length of the linear
    ramp of the generator term), `perceptual_backbone` (file with VGG16 weights).
    """

    disc_loss: str = "hinge"
    gen_loss: str = "vanilla"
    disc_weight: float = 0.75
    perceptual_weight: float = 1.0
    disc_start: float = 0.0
    disc_start_step: Optional[int] = None
    gen_start_step: Optional[int] = None
    gen_ramp_steps: int = 0
    perceptual_backbone: Optional[str] = None


@dataclass
class GANConfig:
    """The `gan` section."""

    disc: DiscConfig = field(default_factory=DiscConfig)
    loss: GANLossConfig = field(default_factory=GANLossConfig)
