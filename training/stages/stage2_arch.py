"""The `arch` section of a stage-2 YAML file, and what it may leave to the stage-1 checkpoint and to the data set.

Legend: L caption tokens.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Any, Optional

from data import ImageDataset
from rqtransformer import RQTransformerConfig
from rqvae import RQVAE
from sampling.trained_models import check_stages_fit


@dataclass
class Stage2ArchConfig(RQTransformerConfig):
    """The RQ-Transformer.

    Attributes:
        vocab_size_cond: number of condition ids: 1 without condition, the classes, or the tokens of captions. null: as
            the data set says, whose captions count, else its classes.
        block_size_cond: condition ids per image: 1, or the length of a caption. null: 1, where `vocab_size_cond` is
            left out as well, the length of the data set's captions.
    """

    vocab_size_cond: Optional[int] = None  # type: ignore[assignment]  # a number once the data set is known
    block_size_cond: Optional[int] = None  # type: ignore[assignment]  # likewise


def with_sizes_of(tokenizer: RQVAE, arch: Stage2ArchConfig, dataset_vocab_size: Any) -> Stage2ArchConfig:
    """The section with the code grid, vocabulary and size of code vectors of the tokenizer, where it leaves them out.

    Args:
        dataset_vocab_size: `dataset.vocab_size`, which published files say instead of `arch.vocab_size`.

    Raises:
        ValueError: what it says does not fit the tokenizer; the key that says it.
    """
    sizes, said = list(tokenizer.quantizer.num_codes), dataset_vocab_size
    if not arch.block_size:
        arch = replace(arch, block_size=list(tokenizer.config.code_shape))
    if arch.vocab_size is None:
        if said is not None and (sizes != [said] * len(sizes) if isinstance(said, int) else sizes != list(said)):
            raise ValueError(f"dataset.vocab_size={said} does not fit the stage-1 checkpoint, whose codes are {sizes}")
        arch = replace(arch, vocab_size=sizes if said is None else said)
    if (
        arch.input_embed_dim is None
        and tokenizer.quantizer.fixed_code_vectors
        and (arch.input_emb_vqvae or arch.head_emb_vqvae)
    ):
        arch = replace(arch, input_embed_dim=tokenizer.codebook(0).shape[1])
    check_stages_fit(arch, tokenizer)
    return arch


def condition_sizes(dataset: ImageDataset, vocab_size: int | None, length: int | None) -> tuple[int, int]:
    """`arch.vocab_size_cond` and `arch.block_size_cond`, each as it is said or else as the data set has it.

    Raises:
        ValueError: the data set has captions in tokens, and nothing that says how many there are.
    """
    if vocab_size is not None:
        return vocab_size, 1 if length is None else length  # as published
    caption_L = None if length == 1 else dataset[0].get("cond")
    if caption_L is None:
        return dataset.num_classes, 1 if length is None else length
    if dataset.tokenizer is None:
        raise ValueError(
            f"arch.vocab_size_cond is missing: nothing says how many tokens the captions of {dataset.name} have"
        )
    return dataset.tokenizer.vocab_size, len(caption_L) if length is None else length


def whole_arch(arch: Stage2ArchConfig) -> RQTransformerConfig:
    """The section of a model, valid as a whole: without condition where none is said."""
    given = {field.name: getattr(arch, field.name) for field in fields(RQTransformerConfig)}
    left_out = {name: 1 for name in ("vocab_size_cond", "block_size_cond") if given[name] is None}
    whole = RQTransformerConfig(**{**given, **left_out})
    whole.validate()
    return whole


def stage2_arch(arch: RQTransformerConfig) -> Stage2ArchConfig:
    """The section of a run for a model that is known as a whole."""
    return Stage2ArchConfig(**{field.name: getattr(arch, field.name) for field in fields(RQTransformerConfig)})
