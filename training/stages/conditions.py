"""What a stage-2 model is conditioned on: nothing, a class, or the tokens of a caption.

Legend: B batch, L caption tokens.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import torch
from torch import Tensor

from rqtransformer import RQTransformer, RQTransformerConfig
from sampling.conditions import CaptionConditions, ClassConditions, Conditions
from training.stage import Batch


def condition_of(model: RQTransformer, batch: Batch, device: torch.device) -> Tensor | None:
    """The condition that the model takes from a batch: nothing, class labels (B,), or token ids (B, L).

    Raises:
        ValueError: when the data set has no captions but the model wants a text condition.
    """
    if model.config.block_size_cond > 1:
        if "cond" not in batch:
            raise ValueError(
                f"arch.block_size_cond={model.config.block_size_cond} wants a text condition, "
                "but the data set gives no caption tokens"
            )
        return batch["cond"].to(device)
    if model.config.vocab_size_cond > 1:
        return batch["label"].to(device)
    return None


def conditions_of_samples(
    arch: RQTransformerConfig,
    batches: Iterable[Batch],
    images_per_class: Sequence[int] | None = None,
    classes: str = "seen",
) -> Conditions:
    """What samples of a model are asked to show: its classes, or captions.

    Args:
        batches: give the captions; they are read for a model that takes captions alone.
        images_per_class: of training; None: not known.
        classes: which of them, one of `sampling.choices.CLASSES`; what is not known leaves none out.
    """
    if arch.block_size_cond > 1:
        return CaptionConditions(torch.cat([batch["cond"] for batch in batches]))
    if images_per_class is None or classes == "all" or arch.vocab_size_cond < 2:
        return ClassConditions(arch.vocab_size_cond)
    return ClassConditions.of_counts(torch.tensor(images_per_class), by_frequency=classes == "frequencies")


def first_batches(batches: Iterable[Batch], num_images: int) -> Iterator[Batch]:
    """Batches until they hold `num_images`, or all there are."""
    for batch in batches:
        yield batch
        num_images -= len(batch["label"])
        if num_images <= 0:
            return
