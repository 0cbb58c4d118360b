"""Images of a model that knows nothing but how often codes occur: what every trained stage 2 must beat.

Legend: B batch, H W code grid, D code depth, K codebook size, N images.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator

import torch
from torch import Tensor

from evaluation.protocol import to_uint8
from rqstack.quantizers.usage import code_histogram
from rqvae import RQVAE
from runtime.seeding import generator
from scoring.scoring_data import ScoringData


@torch.no_grad()
def unigram_images(model: RQVAE, data: ScoringData, num_images: int) -> Iterator[dict[str, Tensor]]:
    """Images decoded from codes that are drawn independently from each depth's frequencies in the training split."""
    sizes, device = model.quantizer.num_codes, data.env.device
    histograms = (
        code_histogram(model.get_codes(batch["image"].to(device)), sizes) for batch in data.float_batches("train")
    )
    counts_DK = functools.reduce(torch.add, histograms).cpu()
    noise = generator("cpu", "unigram", 0)
    height, width, depth = model.config.code_shape
    for index_B in torch.arange(num_images).split(data.batch_size):
        shape = (len(index_B), height, width)
        drawn_D = [
            torch.multinomial(counts_DK[d].double(), len(index_B) * height * width, True, generator=noise).view(shape)
            for d in range(depth)
        ]
        yield {"image": to_uint8(model.decode_code(torch.stack(drawn_D, dim=-1).to(device))), "index": index_B}
