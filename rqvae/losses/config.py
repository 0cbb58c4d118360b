"""Configuration of the stage-1 losses: the `gan` section of a stage-1 YAML file, under its published field names."""

from dataclasses import dataclass, field
from typing import Any, Optional


@dataclass
class DiscriminatorConfig:
    """`gan.disc.arch`: the patch discriminator.

    Attributes:
        in_channels: of the images. null: those of the autoencoder.
        num_layers: convolutions of stride 2; with 2 a verdict is about a patch of 34 x 34 pixels, one more about
            doubles it.
        use_actnorm: activation normalisation in place of batch normalisation.
        ndf: channels of the first layer.
        spectral_norm: divide every convolution's weights by their largest singular value.
        sync_batchnorm: ours; batch statistics over all ranks instead of one rank's images.
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
    """`gan.disc`. Without an `optimizer` section the discriminator is trained like the autoencoder.

    Attributes:
        arch: its layers.
        optimizer: null: as for the autoencoder.
    """

    arch: DiscriminatorConfig = field(default_factory=DiscriminatorConfig)
    optimizer: Any = None


@dataclass
class GANLossConfig:
    """`gan.loss`; the last four keys are ours.

    Attributes:
        disc_loss: of the discriminator: hinge or vanilla.
        gen_loss: of the generator: vanilla or non_saturating.
        disc_weight: of the adaptively weighted generator term.
        perceptual_weight: of LPIPS; above 0 it needs the weights of VGG16.
        disc_start (epochs): when the discriminator begins to be trained.
        disc_start_step (steps): the same in steps, in place of `disc_start`.
        gen_start_step (steps): when the generator first sees the discriminator. null: together with its start.
        gen_ramp_steps (steps): length of the linear ramp of the generator term.
        perceptual_backbone: file with the weights of VGG16. null: where they are looked for.
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
    """The `gan` section.

    Attributes:
        disc: the discriminator.
        loss: the losses of both sides, and LPIPS.
    """

    disc: DiscConfig = field(default_factory=DiscConfig)
    loss: GANLossConfig = field(default_factory=GANLossConfig)
