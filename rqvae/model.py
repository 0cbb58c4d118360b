"""RQ-VAE: an image as a map of code stacks.

Legend: B batch, C channels, H W latent grid, h w code grid (equal to H W unless the config joins latent vectors),
D code depth, E size of a latent vector (of a code vector after `embed_code_with_depth`), K codebook size.

Lee et al., Autoregressive Image Generation using Residual Quantization, CVPR 2022.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from rqstack.arguments import check_choice, check_count, check_flag, check_kind, check_number, shown
from rqstack.hub import PretrainedModel
from rqstack.quantizers import EMACodebook, Quantizer, QuantizerOutput
from rqstack.strict_loading import check_fit
from rqvae.bottleneck import build_quantizer
from rqvae.config import RQVAEConfig
from rqvae.encoder_decoder import Decoder, Encoder

CACHED_BYTES = 4 * 2**20  # of the widest maps that one thread of a CPU works on at a time


class RQVAEOutput(NamedTuple):
    """recon: (B, out_ch, H, W) of images, not clamped. quantizer_output: codes, commitment loss, quantized latent."""

    recon: Tensor
    quantizer_output: QuantizerOutput


class RQVAE(PretrainedModel):
    """Encoder, residual quantizer, decoder; `from_pretrained`, `save_pretrained`, `push_to_hub` are `rqstack.hub`'s.

    Images are (B, C, H, W) in [-1, 1], latents channels-last, codes int64 (B, h, w, D). Raises ValueError for a config
    whose values do not fit together and for images whose size the encoder cannot halve often enough.
    """

    arch_type = "rq-vae"

    def __init__(self, config: RQVAEConfig):
        super().__init__()
        check_kind("config", config, RQVAEConfig).validate()
        self.config = config
        dd = config.ddconfig
        self.encoder = Encoder(dd, config.checkpointing)
        self.decoder = Decoder(dd, config.checkpointing)
        self.quantizer: Quantizer = build_quantizer(config)
        self.quant_conv = nn.Conv2d(dd.z_channels * (2 if dd.double_z else 1), config.embed_dim, 1)
        self.post_quant_conv = nn.Conv2d(config.embed_dim, dd.z_channels, 1)

    def forward(self, image_BCHW: Tensor) -> RQVAEOutput:
        """Reconstruct. In train mode the codebook learns: see `codebook_update` in the config."""
        quantizer_output = self.quantize(self.encode(image_BCHW))
        return RQVAEOutput(self.decode(quantizer_output.quantized), quantizer_output)

    def encode(self, image_BCHW: Tensor) -> Tensor:
        """Image -> latent (B, H, W, E), not yet quantized."""
        self._check_image(image_BCHW)
        return self.quant_conv(self.encoder(image_BCHW)).permute(0, 2, 3, 1)

    def quantize(self, z_BHWE: Tensor) -> QuantizerOutput:
        """Latent -> quantized latent, codes and commitment loss."""
        self._check_latent(z_BHWE)
        return self.quantizer(z_BHWE)

    def decode(self, z_BHWE: Tensor) -> Tensor:
        """Latent -> image."""
        self._check_latent(z_BHWE)
        z_BEHW = z_BHWE.permute(0, 3, 1, 2).to(self.post_quant_conv.weight.dtype)
        if self._is_channels_last():
            z_BEHW = z_BEHW.contiguous(memory_format=torch.channels_last)
        else:
            z_BEHW = z_BEHW.contiguous()
        return self.decoder(self.post_quant_conv(z_BEHW))

    def compile(self, *args: Any, **kwargs: Any) -> None:
        """Compiles the bodies of the encoder and the decoder, where the time goes, with `torch.compile`'s arguments."""
        self.encoder.compile(*args, **kwargs)
        self.decoder.compile(*args, **kwargs)

    @torch.no_grad()
    def get_codes(self, image_BCHW: Tensor) -> Tensor:
        """Image -> codes (B, h, w, D). Never changes the codebook."""
        return self.quantizer.targets(self._latent(image_BCHW))[1]

    @torch.no_grad()
    def get_soft_codes(
        self,
        image_BCHW: Tensor,
        temp: float = 1.0,
        stochastic: bool = False,
        generator: torch.Generator | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Image -> code probabilities (B, h, w, D, K) and codes (B, h, w, D).

        probs: softmax of -squared distance / temp. # Eq. 12. codes: nearest ones, or drawn from probs if `stochastic`;
        the residuals follow the codes. Depths with fewer than the largest K end in zeros.
        """
        temp = check_number("temp", temp, 0, above=True)
        check_flag("stochastic", stochastic)
        return self.quantizer.soft_codes(self._latent(image_BCHW), temp, stochastic, generator)

    @torch.no_grad()
    def get_latent_targets(
        self,
        image_BCHW: Tensor,
        temp: float = 1.0,
        stochastic: bool = False,
        generator: torch.Generator | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Image -> residual entering every depth (B, h, w, D, C) fp32 and codes (B, h, w, D).

        The same codes as `get_soft_codes` without the K probabilities per code: they follow from the residual and
        `searched_codebook(depth)`, a chunk at a time.
        """
        temp = check_number("temp", temp, 0, above=True)
        check_flag("stochastic", stochastic)
        return self.quantizer.targets(self._latent(image_BCHW), temp, stochastic, generator)

    def embed_code(self, codes_BhwD: Tensor) -> Tensor:
        """Codes -> quantized latent (B, H, W, E): the sum over depth of the code vectors. # Eq. 3"""
        self._check_codes(codes_BhwD)
        return self.quantizer.decode(codes_BhwD)

    def embed_code_with_depth(self, codes_BhwD: Tensor) -> Tensor:
        """Codes -> code vectors (B, h, w, D, E), neither summed nor cumulated."""
        self._check_codes(codes_BhwD)
        return self.quantizer.embed_with_depth(codes_BhwD)

    def codebook(self, depth: int) -> Tensor:
        """The (K, E) vectors that `embed_code_with_depth` gives for the codes of depth `depth`."""
        return self.quantizer.code_vectors(depth)

    def searched_codebook(self, depth: int) -> Tensor:
        """The (K, C) vectors that depth `depth` compares its latent target with: `codebook`, unless the bottleneck
        projects, cuts or groups vectors."""
        return self.quantizer.codebook(depth)

    @torch.no_grad()
    def decode_code(self, codes_BhwD: Tensor) -> Tensor:
        """Codes -> image."""
        return self.decode(self.embed_code(codes_BhwD))

    @torch.no_grad()
    def decode_partial_code(self, codes_BhwD: Tensor, code_idx: int, decode_type: str = "select") -> Tensor:
        """Image of a part of the codes: depth `code_idx` alone ('select') or depths 0 to `code_idx` ('add')."""
        self._check_codes(codes_BhwD)
        depth = check_count("code_idx", code_idx, 0, codes_BhwD.shape[-1] - 1)
        check_choice("decode_type", decode_type, ("select", "add"))
        if decode_type == "select":
            return self.decode(self.quantizer.decode_depth(codes_BhwD, depth))
        return self.decode(self.embed_code(codes_BhwD[..., : depth + 1]))

    def _latent(self, image_BCHW: Tensor) -> Tensor:
        """`encode` where no gradients are taken: on a CPU a few images at a time, whose maps stay in its caches."""
        self._check_image(image_BCHW)
        if image_BCHW.device.type != "cpu" or torch.compiler.is_compiling():
            return self.encode(image_BCHW)
        map_bytes = 4 * self.config.ddconfig.ch * image_BCHW.shape[2] * image_BCHW.shape[3]
        together = max(1, CACHED_BYTES // map_bytes) * torch.get_num_threads()
        return torch.cat([self.encode(part_bCHW) for part_bCHW in image_BCHW.split(together)])

    def update_codebook(self) -> None:
        """Apply the deferred codebook update: once per optimizer step, on all processes."""
        self.quantizer.update_codebook()

    def discard_codebook_update(self) -> None:
        """Forget what the forwards of a skipped optimizer step have gathered."""
        self.quantizer.discard_codebook_update()

    @classmethod
    def _build(cls, sections: Mapping[str, Mapping[str, Any]], tensors: Mapping[str, Tensor]) -> RQVAE:
        with torch.device("meta"):  # without initial values, so no random numbers are drawn
            model = cls(RQVAEConfig.from_mapping(sections["arch"]))
        check_fit(model.state_dict(), tensors, "the checkpoint")
        model.to_empty(device="cpu")
        model.load_state_dict(dict(tensors))
        model._fill_constants()
        return model

    def _fill_constants(self) -> None:
        """Gives the quantizer's buffers that are not saved (grids of values, counters) the values they start with."""
        saved = self.quantizer.state_dict().keys()
        with torch.random.fork_rng(devices=[]):
            start = dict(build_quantizer(self.config).named_buffers())
        for name, buffer in self.quantizer.named_buffers():
            if name not in saved:
                buffer.copy_(start[name])

    def _sections(self) -> dict[str, Any]:
        values = dataclasses.asdict(self.config)
        apart = {name: values.pop(name) for name in ("ddconfig", "checkpointing")}
        return {"arch": {"type": "rq-vae", "hparams": values, **apart}}

    def _card(self) -> tuple[str, list[str], dict[str, Any]]:
        config, dd = self.config, self.config.ddconfig
        facts = {
            "image, height x width": f"{' x '.join(map(str, dd.image_size))}, {dd.in_channels} channels",
            "codes of an image": " x ".join(map(str, config.code_shape)),
            "codebook sizes": ", ".join(map(str, self.quantizer.num_codes)) or "none",
            "bottleneck": config.bottleneck_type,
            "parameters": f"{count_parameters(self):,}",
        }
        return "Images as stacks of discrete codes, and back.", ["image-tokenizer", "vector-quantization"], facts

    @property
    def decoder_last_layer(self) -> Tensor:
        """The weight at which the adaptive loss weight compares gradients."""
        return self.decoder.conv_out.weight

    def _check_image(self, image_BCHW: Tensor) -> None:
        dd, factor = self.config.ddconfig, 2 ** (len(self.config.ddconfig.ch_mult) - 1)
        rows, columns = (factor * joined for joined in self.config.patch)
        if not isinstance(image_BCHW, Tensor) or not image_BCHW.is_floating_point():
            raise TypeError(f"images must be a tensor of floating-point numbers in [-1, 1], got {shown(image_BCHW)}")
        shape = tuple(image_BCHW.shape)
        if len(shape) != 4 or shape[1] != dd.in_channels or shape[2] % rows or shape[3] % columns:
            wanted = f"(B, {dd.in_channels}, H, W) with H divisible by {rows}, W divisible by {columns}"
            raise ValueError(f"images must be {wanted}, got {shape}")

    def _check_latent(self, z_BHWE: Tensor) -> None:
        width = self.config.embed_dim
        if not isinstance(z_BHWE, Tensor) or not z_BHWE.is_floating_point():
            raise TypeError(f"latents must be a tensor (B, H, W, {width}) of numbers, got {shown(z_BHWE)}")
        if z_BHWE.ndim != 4 or z_BHWE.shape[-1] != width:
            raise ValueError(f"latents must be (B, H, W, {width}), got {tuple(z_BHWE.shape)}")

    def _check_codes(self, codes_BhwD: Tensor) -> None:
        if not isinstance(codes_BhwD, Tensor) or codes_BhwD.ndim != 4 or not codes_BhwD.shape[-1]:
            raise ValueError(f"codes must be a tensor (B, h, w, D) of whole numbers, got {shown(codes_BhwD)}")

    def _is_channels_last(self) -> bool:
        return self.decoder.conv_in.weight.is_contiguous(memory_format=torch.channels_last)


def count_parameters(model: nn.Module) -> int:
    """The published number of parameters: trainable ones plus every distinct codebook once, with its padding row.

    Our codebooks are buffers without padding row; the published ones are frozen parameters with one. Works on the meta
    device.
    """
    learned = sum(parameter.numel() for parameter in model.parameters())
    averaged = (module for module in model.modules() if isinstance(module, EMACodebook))
    codebooks = (module.weight for module in averaged if not list(module.parameters()))
    return learned + sum(weight.numel() + weight.shape[1] for weight in codebooks)


def load_rqvae(
    path: str | Path,
    ema: bool = False,
    device: str | torch.device = "cpu",
    *,
    config: str | Path | Mapping[str, Any] | None = None,
    dtype: torch.dtype | str | None = None,
) -> RQVAE:
    """A trained RQ-VAE, in eval mode: `RQVAE.from_checkpoint`, which says what `path` may be and what is raised."""
    return RQVAE.from_checkpoint(path, ema, device, config=config, dtype=dtype)
