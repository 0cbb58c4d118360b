"""Settings of an RQ-VAE, with the field names of the published YAML files.

The dataclasses hold values only; what they have to satisfy together is in `validate`. They are also OmegaConf
structured configs: a field of type Any takes one number or one number per code depth.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from omegaconf import MISSING

from rqstack.arguments import check_count, check_counts, check_mapping, height_width
from rqvae.bottleneck import BOTTLENECKS
from rqvae.strict_mapping import check_present, typed

LOSS_TYPES = ("mse", "l1")
CODEBOOK_UPDATES = ("per_depth", "deferred")
NORM_GROUPS = 32


@dataclass
class DDConfig:
    """The two convolutional halves: `ch * ch_mult[i]` channels at level i, which halves the resolution i times.

    Attributes:
        double_z: the encoder gives twice `z_channels`, as for a variational autoencoder.
        z_channels: channels between the halves and the bottleneck.
        resolution (pixels): of the images, the side of a square or [height, width].
        in_channels, out_ch: channels of the images, the same for both: 1 grey, 3 RGB, 4 RGBA.
        ch: channels at full resolution, a multiple of 32.
        ch_mult: factor of `ch` at every level; one level more halves the code grid.
        num_res_blocks: residual blocks per level of the encoder; the decoder has one more.
        attn_resolutions (pixels): shorter sides of the feature maps that get self-attention.
        dropout: share of activations dropped inside residual blocks.
        resamp_with_conv: a convolution with every change of resolution; without, the mean of 2 x 2 and nearest
            neighbour.
    """

    double_z: bool = False
    z_channels: int = MISSING
    resolution: Any = MISSING
    in_channels: int = 3
    out_ch: int = 3
    ch: int = MISSING
    ch_mult: list[int] = MISSING
    num_res_blocks: int = MISSING
    attn_resolutions: list[int] = field(default_factory=list)
    dropout: float = 0.0
    resamp_with_conv: bool = True

    @property
    def image_size(self) -> tuple[int, int]:
        """(H, W) of the images in pixels."""
        return height_width("ddconfig.resolution", self.resolution)

    def has_attention(self, level: int) -> bool:
        """Whether the blocks of a level are followed by attention."""
        return min(self.image_size) // 2**level in self.attn_resolutions


@dataclass
class QuantizerHParams:
    """The bottleneck. Missing keys have their published defaults.

    Attributes:
        bottleneck_type: `rq`, `none`, or another of the table `rqvae.bottleneck.BOTTLENECKS`.
        embed_dim: E, the size of a code vector.
        n_embed: K, the size of the codebook, or one per depth; may be left out where options give it.
        decay: of the moving averages of the codebook, or one per depth.
        loss_type: what the reconstruction loss compares by: `mse` or `l1`.
        latent_loss_weight: of the commitment loss.
        latent_shape: [H, W, E] of the encoder's output.
        code_shape: [h, w, D]; a code grid smaller than the latent grid joins neighbouring latent vectors.
        shared_codebook: one codebook for all depths.
        restart_unused_codes: give codes that nothing is near to a vector of the batch.
        codebook_update: `per_depth` (published) or `deferred` (once per optimizer step).
        use_padding_idx: written by published files; only false is supported.
        masked_dropout: written by published files; only 0 is supported.
        bottleneck: options of a `bottleneck_type` other than `rq` and `none`. For `vq` and `residual_vq` also decay,
            shared_codebook and restart_unused_codes keep their published meaning.
    """

    bottleneck_type: str = "rq"
    embed_dim: int = MISSING
    n_embed: Any = None
    decay: Any = 0.99
    loss_type: str = "l1"
    latent_loss_weight: float = 0.25
    latent_shape: list[int] = MISSING
    code_shape: list[int] = MISSING
    shared_codebook: bool = False
    restart_unused_codes: bool = False
    codebook_update: str = "per_depth"
    use_padding_idx: bool = False
    masked_dropout: float = 0.0
    bottleneck: dict[str, Any] = field(default_factory=dict)

    @property
    def bottleneck_options(self) -> Any:
        """The typed options of `bottleneck_type`; one-line ValueError for a wrong key, type or missing value."""
        row = BOTTLENECKS.get(self.bottleneck_type)
        if row is None or row.options is None:
            _check(not self.bottleneck, f"bottleneck_type {self.bottleneck_type!r} takes no bottleneck options")
            return None
        return typed(row.options, self.bottleneck, "bottleneck")

    @property
    def depth(self) -> int:
        """D, the number of codes per position; 0 without a bottleneck."""
        return self.code_shape[2] if self.bottleneck_type != "none" else 0

    @property
    def code_sizes(self) -> tuple[int, ...]:
        """K of every depth."""
        return tuple(_per_depth("n_embed", self.n_embed, self.depth, int))

    @property
    def decays(self) -> tuple[float, ...]:
        """Decay of the moving averages of every depth."""
        return tuple(_per_depth("decay", self.decay, self.depth, float))

    @property
    def patch(self) -> tuple[int, int]:
        """Latent rows and columns that share one stack of codes."""
        return self.latent_shape[0] // self.code_shape[0], self.latent_shape[1] // self.code_shape[1]


@dataclass
class RQVAEConfig(QuantizerHParams):
    """Everything an RQVAE is built from. checkpointing: recompute activations in the backward pass."""

    ddconfig: DDConfig = field(default_factory=DDConfig)
    checkpointing: bool = False

    @classmethod
    def from_mapping(cls, mapping: Mapping[str, Any]) -> "RQVAEConfig":
        """From a flat mapping of the fields above or a published `arch` section (with nested `hparams`).

        Raises ValueError in one line for an unknown key (naming the nearest known one), a wrong type, a missing value
        or values that do not fit together.
        """
        check_mapping("the config", mapping)
        if "hparams" in mapping:
            config = typed(ArchConfig, mapping, "arch").model_config()
        else:
            config = typed(cls, mapping, "rqvae")
        config.validate()
        return config

    def validate(self) -> None:
        """Check every value and every relation between values; ValueError with the first one that is wrong."""
        check_present(self)
        _check_choice("bottleneck_type", self.bottleneck_type, tuple(BOTTLENECKS))
        _ = self.bottleneck_options  # typed and complete, or an error
        sized = BOTTLENECKS[self.bottleneck_type].size_in_options
        _check(self.n_embed is not None or sized, "missing value: n_embed")
        _check_halves(self.ddconfig)
        _check_bottleneck(self)
        _check_shapes(self)


@dataclass
class ArchConfig:
    """The `arch` section of a published stage-1 YAML file.

    Attributes:
        type: `rq-vae`, nothing else.
        code_hier: levels of code maps; only 1 is supported.
        ema: decay of the average of the weights, read by the training. null: no average is kept.
        hparams: the bottleneck.
        ddconfig: encoder and decoder.
        checkpointing: work activations out again in the backward pass instead of keeping them.
    """

    type: str = "rq-vae"
    code_hier: int = 1
    ema: Any = None
    hparams: QuantizerHParams = field(default_factory=QuantizerHParams)
    ddconfig: DDConfig = field(default_factory=DDConfig)
    checkpointing: bool = False

    def model_config(self) -> RQVAEConfig:
        """The model's part of the section."""
        _check(self.type == "rq-vae", f"arch.type must be 'rq-vae', got {self.type!r}")
        _check(self.code_hier == 1, f"arch.code_hier must be 1 (one level of code maps), got {self.code_hier}")
        hparams = {f.name: getattr(self.hparams, f.name) for f in dataclasses.fields(QuantizerHParams)}
        return RQVAEConfig(**hparams, ddconfig=self.ddconfig, checkpointing=self.checkpointing)


def _check(condition: bool, message: str) -> None:
    if not condition:
        raise ValueError(message)


def _check_choice(name: str, value: str, allowed: tuple[str, ...]) -> None:
    _check(value in allowed, f"{name} {value!r} is not one of {', '.join(allowed)}")


def _per_depth(name: str, value: Any, depth: int, kind: type) -> list[Any]:
    """One value per depth from one number or a list of D numbers."""
    many = isinstance(value, Sequence) and not isinstance(value, str)
    values = list(value) if many else [value] * depth
    _check(len(values) == depth, f"{name} has {len(values)} values for the {depth} depths of code_shape: {value}")
    for item in values:
        fits = isinstance(item, int) if kind is int else isinstance(item, (int, float))
        _check(fits and not isinstance(item, bool), f"{name} must be {kind.__name__} (or a list of it), got {value!r}")
    return [kind(item) for item in values]


def _check_halves(dd: DDConfig) -> None:
    for name in ("z_channels", "in_channels", "out_ch", "ch", "num_res_blocks"):
        check_count(f"ddconfig.{name}", getattr(dd, name))
    _check(
        dd.in_channels == dd.out_ch,
        f"ddconfig.in_channels {dd.in_channels} and ddconfig.out_ch {dd.out_ch} must be equal: 1 grey, 3 RGB, 4 RGBA",
    )
    _check(len(dd.ch_mult) >= 1 and min(dd.ch_mult) >= 1, f"ddconfig.ch_mult needs positive entries, got {dd.ch_mult}")
    _check(dd.ch % NORM_GROUPS == 0, f"ddconfig.ch {dd.ch} is not a multiple of {NORM_GROUPS} (group normalisation)")
    _check(0 <= dd.dropout < 1, f"ddconfig.dropout must be in [0, 1), got {dd.dropout}")
    factor = 2 ** (len(dd.ch_mult) - 1)
    _check(
        not any(side % factor for side in dd.image_size),
        f"ddconfig.resolution {dd.resolution} is not divisible by {factor} (2 ** (levels of ch_mult - 1))",
    )


def _check_bottleneck(config: RQVAEConfig) -> None:
    _check_choice("loss_type", config.loss_type, LOSS_TYPES)
    _check_choice("codebook_update", config.codebook_update, CODEBOOK_UPDATES)
    _check(not config.use_padding_idx, "use_padding_idx true is not supported; leave it out or set it to false")
    _check(config.masked_dropout == 0, f"masked_dropout {config.masked_dropout} is not supported; set it to 0.0")
    _check(config.latent_loss_weight >= 0, f"latent_loss_weight must not be negative, got {config.latent_loss_weight}")
    check_count("embed_dim", config.embed_dim)


def _check_shapes(config: RQVAEConfig) -> None:
    latent, code, dd = list(config.latent_shape), list(config.code_shape), config.ddconfig
    for name, shape in (("latent_shape", latent), ("code_shape", code)):
        _check(len(shape) == 3 and min(shape) >= 1, f"{name} needs three positive numbers, got {shape}")
    expected = [side // 2 ** (len(dd.ch_mult) - 1) for side in dd.image_size] + [config.embed_dim]
    _check(
        latent == expected,
        f"latent_shape {latent} does not fit: resolution {dd.resolution}, {len(dd.ch_mult)} levels and embed_dim "
        f"{config.embed_dim} give {expected}",
    )
    _check(
        latent[0] % code[0] == 0 and latent[1] % code[1] == 0,
        f"code_shape {code} does not divide latent_shape {latent} in height and width",
    )
    if BOTTLENECKS[config.bottleneck_type].options is not None:
        _check_one_size(config)
    if config.bottleneck_type != "rq":
        return
    sizes, decays = config.code_sizes, config.decays
    check_counts("n_embed", sizes)
    _check(all(0 <= decay < 1 for decay in decays), f"decay must be in [0, 1), got {config.decay}")
    if config.shared_codebook:
        same = len(set(sizes)) == len(set(decays)) == 1
        _check(same, f"shared_codebook needs one n_embed and one decay, got {config.n_embed} and {config.decay}")


def _check_one_size(config: RQVAEConfig) -> None:
    kind, decays = config.bottleneck_type, set(config.decays)
    _check(len(decays) == 1, f"decay must be one number for bottleneck_type {kind!r}, got {config.decay}")
    _check(0 <= min(decays) < 1, f"decay must be in [0, 1), got {config.decay}")
    if config.n_embed is not None:
        sizes = config.code_sizes
        _check(min(sizes) >= 2, f"n_embed must be at least 2, got {config.n_embed}")
        one = BOTTLENECKS[kind].size_per_depth or len(set(sizes)) == 1
        _check(one, f"n_embed must be one number for bottleneck_type {kind!r}, got {config.n_embed}")
