"""The sampler: two trained models, conditions and settings -> images by their global sample index.

Scripts, previews and scores while training all draw through it. Sample i depends on (seed, i) and its condition alone,
on no batch size, rank or number of ranks.

Legend: B batch, C channels, H W image (code grid in codes), D code depth, T positions, N images.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from evaluation.protocol import shard_indices, to_uint8
from rqtransformer import RQTransformer, decode_in_batches, sample, sample_stream
from rqtransformer.decoding import PartialCodes, check_codes
from rqtransformer.finite_draws import check_pixels
from rqtransformer.pretrained import sampling_settings
from rqvae import RQVAE
from sampling.conditions import Conditions
from sampling.drawing_ahead import drawn_ahead


@dataclass(frozen=True)
class SamplingSettings:
    """How samples are drawn; see `rqtransformer.sample`.

    Args:
        temperature, top_k, top_p: one value or one per depth; None is what the model's checkpoint says.
        cfg_scale: classifier-free guidance, a number or a schedule; None is the plain model.
        weight_format: of stage 2 while sampling, one of `WEIGHT_FORMATS`.
        seed: of all noise.
        batch_size: samples at a time.
    """

    temperature: Any = None
    top_k: Any = None
    top_p: Any = None
    cfg_scale: float | str | None = None
    weight_format: str | None = None
    seed: int = 0
    batch_size: int = 100

    def arguments(self, stage2: RQTransformer) -> dict[str, Any]:
        """Those of `rqtransformer.sample`, with the defaults of the checkpoint; what a result line says."""
        return sampling_settings(
            stage2,
            temperature=self.temperature,
            top_k=self.top_k,
            top_p=self.top_p,
            cfg_scale=self.cfg_scale,
            weights=self.weight_format,
        )


class Sampler:
    """Draws samples and decodes them.

    Args:
        stage1, stage2: the models, on one device.
        conditions: taken in turn.
        settings: how to draw.
        amp_dtype: number format of stage 2's products; None is that of its weights.
        pixel_dtype: number format of the decoder's products; None is that of its weights. Another one also lays its
            weights out with the channels last.

    Attributes:
        arguments: the settings in force, by the names of `rqtransformer.sample`.

    Raises:
        ValueError: settings that cannot work, before anything is drawn.
    """

    def __init__(
        self,
        stage1: RQVAE,
        stage2: RQTransformer,
        conditions: Conditions,
        settings: SamplingSettings = SamplingSettings(),
        amp_dtype: torch.dtype | None = None,
        pixel_dtype: torch.dtype | None = None,
    ) -> None:
        self.stage1, self.stage2, self.conditions = stage1, stage2, conditions
        self.settings, self.amp_dtype, self.pixel_dtype = settings, amp_dtype, pixel_dtype
        if pixel_dtype is not None:
            stage1.to(memory_format=torch.channels_last)
        self.arguments = settings.arguments(stage2)
        complete_1TD = torch.zeros(1, stage2.num_positions, stage2.depth, dtype=torch.long)
        sample(stage2, stage1, prefix=complete_1TD, **self.arguments)

    def draw(self, index_B: Tensor, condition_B: Tensor, rows: int | None = None) -> Tensor:
        """Codes (B, H, W, D) of the samples with these global indices and numbers of conditions.

        Does not wait for the device; `decode` looks at whether all could be drawn.

        Args:
            index_B, condition_B: of the samples.
            rows: samples of a full batch, where this may be a smaller last one; see `decoding.sample_stream`.
        """
        return sample(
            self.stage2,
            self.stage1,
            self.conditions.ids(condition_B),
            indices=index_B,
            seed=self.settings.seed,
            amp_dtype=self.amp_dtype,
            rows=rows,
            checked=False,
            **self.arguments,
        )

    def stream(self, index_B: Tensor, condition_B: Tensor) -> Iterator[PartialCodes]:
        """`draw`, position by position, for previews: the last step has the codes of `draw`.

        Raises:
            NonFiniteError: instead of the last step, where the model's numbers are not finite.
        """
        return sample_stream(
            self.stage2,
            self.stage1,
            self.conditions.ids(condition_B),
            indices=index_B,
            seed=self.settings.seed,
            amp_dtype=self.amp_dtype,
            **self.arguments,
        )

    def decode(self, codes_BHWD: Tensor) -> Tensor:
        """Images in [-1, 1], decoded in as many parts as memory asks for.

        Raises:
            NonFiniteError: naming what is not finite, in stage 2 for codes that could not be drawn, in stage 1 for
                pixels.
        """
        check_codes(codes_BHWD, self.stage2, self.stage1)
        dtype = self.pixel_dtype
        with torch.autocast(codes_BHWD.device.type, dtype=dtype or torch.bfloat16, enabled=dtype is not None):
            return check_pixels(torch.cat(list(decode_in_batches(self.stage1, codes_BHWD))), self.stage1)

    def images(self, num_samples: int, rank: int = 0, world_size: int = 1) -> Iterator[dict[str, Tensor]]:
        """Samples 0..N-1 in batches of this rank: `image` uint8 (B, C, H, W), `index` and `conditions.key` (B,)."""
        condition_N = self.conditions.of_samples(num_samples)
        mine = torch.tensor(shard_indices(num_samples, rank, world_size), dtype=torch.long)
        if not len(mine):
            return
        batches = [(index_B, condition_N[index_B]) for index_B in mine.split(self.settings.batch_size)]
        draws = (partial(self.draw, *batch, rows=len(batches[0][0])) for batch in batches)
        # for all batches, so that a model in training mode is not packed for each of them
        with self.stage2.decoding_mode(self.amp_dtype, self.settings.weight_format or "dense"):
            drawn = drawn_ahead(draws, self.stage2.pos_emb_hw.device)
            for (index_B, condition_B), codes_BHWD in zip(batches, drawn):
                image_BCHW = to_uint8(self.decode(codes_BHWD))
                named_B = self.conditions.names(condition_B)
                yield {"image": image_BCHW, self.conditions.key: named_B, "index": index_B}
