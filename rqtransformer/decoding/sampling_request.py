"""What a call of `sample` asks for, checked and brought into one form before anything runs.

Legend: B batch, P given positions, T = H*W positions, D code depth, L condition length.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor

from rqstack.arguments import INT64_MAX, is_number, shown
from rqtransformer.decoding.allowed_codes import Allowed, check_allowed
from rqtransformer.draw_settings import DrawSettings
from rqtransformer.given_values import check_codes_below, plain, whole_number, whole_numbers
from rqtransformer.model import RQTransformer

GUIDANCE_SCHEDULES = ("constant", "linear", "cosine")
Guidance = float | str | Sequence[float] | None


@dataclass(frozen=True)
class SamplingRequest:
    """A checked request.

    Attributes:
        cond_BL: condition ids; with guidance the null conditions follow as another B rows.
        prefix_BPD: codes of the first P positions.
        known_BTD, codes_BTD: which codes are given and their values, or None and None.
        settings: of each depth.
        scale_T: guidance scale of each position; None without guidance.
        index_B: global index of every sample.
        allowed: which codes may come next, or None; see `allowed_codes`.
    """

    cond_BL: Tensor
    prefix_BPD: Tensor
    known_BTD: Tensor | None
    codes_BTD: Tensor | None
    settings: list[DrawSettings]
    scale_T: list[float] | None
    index_B: Tensor
    allowed: Allowed | None = None

    @property
    def batch_size(self) -> int:
        """B."""
        return len(self.index_B)

    @property
    def body_prefix_BPD(self) -> Tensor:
        """The given codes, with guidance once more for the rows without condition."""
        return self.prefix_BPD if self.scale_T is None else self.prefix_BPD.repeat(2, 1, 1)


def check_request(
    model: RQTransformer,
    tokenizer: object,
    cond: Any,
    *,
    num_samples: int | None,
    draw: Mapping[str, Any],
    cfg_scale: Guidance,
    start_index: int,
    indices: Any,
    prefix: Any,
    known: Any,
    allowed: Any,
) -> SamplingRequest:
    """The arguments of `decoding.sample` -> a `SamplingRequest`. Raises ValueError as `sample` says.

    `draw` are those that become `DrawSettings`, by name.
    """
    check_models(model, tokenizer)
    device = model.pos_emb_hw.device
    cond = None if cond is None else whole_numbers("cond", cond)
    prefix = None if prefix is None else whole_numbers("prefix", prefix)
    indices = None if indices is None else whole_numbers("indices", indices)
    if indices is not None and indices.ndim > 1:
        raise ValueError(f"indices of shape {tuple(indices.shape)} must be one number per sample")
    mask, given = (None, None) if known is None else _mask_and_codes(known)
    batch_size = _batch_size(num_samples, cond, prefix, indices, given)
    prefix_BPD = _prefix(model, prefix, batch_size, device)
    known_BTD, codes_BTD = None, None
    if mask is not None and given is not None:
        known_BTD, codes_BTD = _known(model, mask, given, batch_size, device)
    if known_BTD is not None and codes_BTD is not None:
        if prefix is not None:
            raise ValueError("prefix and known cannot be combined; mark the prefix in the mask of known")
        first = int(known_BTD.all(dim=2).all(dim=0).long().cumprod(0).sum())
        prefix_BPD = codes_BTD[:, :first]
    settings = settings_per_depth(model.depth, **draw)
    cond_BL = _condition(model, cond, batch_size, device)
    scale_T = guidance_scales(cfg_scale, model.num_positions)
    if scale_T is not None:
        if not model.config.has_null_condition:
            raise ValueError(
                "guidance (cfg_scale) needs a model trained with condition dropout; this one has arch.cond_drop_prob=0"
            )
        cond_BL = torch.cat([cond_BL, torch.full_like(cond_BL, model.null_condition)])
    start_index = whole_number("start_index", start_index)
    if start_index + batch_size > INT64_MAX:
        raise ValueError(f"start_index={start_index} must leave room for {batch_size} samples below 2**63")
    index_B = torch.arange(start_index, start_index + batch_size, device=device)
    if indices is not None:
        index_B = indices.to(device)
    check = check_allowed(allowed)
    return SamplingRequest(cond_BL, prefix_BPD, known_BTD, codes_BTD, settings, scale_T, index_B, check)


def check_models(model: object, tokenizer: object) -> None:
    """Raises ValueError for what is not a stage-2 model with the tokenizer that it needs."""
    if not isinstance(model, RQTransformer):
        raise ValueError(f"the first model must be an RQTransformer (stage 2), not a {type(model).__name__}")
    if tokenizer is None and not (model.input_mlp is None and model.head_mlp is None):
        raise ValueError("this model embeds codes with the code vectors of a tokenizer: give the stage-1 model")
    if tokenizer is not None and not hasattr(tokenizer, "codebook"):
        raise ValueError(f"the tokenizer must be a stage-1 model, with `codebook`, not a {type(tokenizer).__name__}")


def guidance_scales(cfg_scale: Guidance, num_positions: int) -> list[float] | None:
    """One scale per position, or None if all are 1 (the plain model).

    Args:
        cfg_scale: None; a number; one number per position; or a schedule "name:scale" that ends at the scale: constant,
            linear (from 1 in equal steps) or cosine (from 1, slow at both ends).
        num_positions: T.

    Raises:
        ValueError: for an unknown schedule or a wrong number of scales.
    """
    if cfg_scale is None:
        return None
    cfg_scale = plain(cfg_scale)
    if isinstance(cfg_scale, str):
        scales = _scheduled(cfg_scale, num_positions)
    else:
        values: list[Any] = list(cfg_scale) if isinstance(cfg_scale, (list, tuple)) else [cfg_scale] * num_positions
        if not all(is_number(value) for value in values):
            raise ValueError(f"cfg_scale={shown(cfg_scale)} must be a number, one per position, or a schedule")
        scales = [float(scale) for scale in values]
    if len(scales) != num_positions:
        raise ValueError(f"cfg_scale has {len(scales)} values; it needs one, or one per position ({num_positions})")
    if not all(math.isfinite(scale) for scale in scales):
        raise ValueError(f"cfg_scale={shown(cfg_scale)} must be finite")
    return None if all(scale == 1.0 for scale in scales) else scales


def _scheduled(text: str, num_positions: int) -> list[float]:
    name, _, value = text.partition(":")
    try:
        scale = float(value)
    except ValueError:
        scale = math.nan
    if name not in GUIDANCE_SCHEDULES or not math.isfinite(scale):
        raise ValueError(
            f"cfg_scale={text!r} must be a number or one of "
            + ", ".join(f"'{known}:<scale>'" for known in GUIDANCE_SCHEDULES)
        )
    shares = [position / max(1, num_positions - 1) for position in range(num_positions)]
    if name == "constant":
        shares = [1.0] * num_positions
    elif name == "cosine":
        shares = [(1 - math.cos(math.pi * share)) / 2 for share in shares]
    return [1.0 + (scale - 1.0) * share for share in shares]


def _batch_size(num_samples: int | None, *givers: Tensor | Sequence[int] | None) -> int:
    sizes = [len(giver) for giver in givers if giver is not None]
    if num_samples is not None:
        sizes.append(whole_number("num_samples", num_samples))
    if not sizes:
        raise ValueError("num_samples is needed when neither cond, prefix, known nor indices says how many to draw")
    if len(set(sizes)) > 1 or sizes[0] < 1:
        raise ValueError(f"num_samples, cond, prefix, known and indices must agree on one positive number, not {sizes}")
    return sizes[0]


def _prefix(model: RQTransformer, prefix: Tensor | None, batch_size: int, device: torch.device) -> Tensor:
    if prefix is None:
        return torch.empty(batch_size, 0, model.depth, dtype=torch.long, device=device)
    if prefix.ndim == 4 and prefix.shape[2] == model.config.block_size[1]:
        prefix = prefix.flatten(1, 2)  # whole rows of a code map
    if prefix.ndim != 3 or prefix.shape[1] > model.num_positions or prefix.shape[2] != model.depth:
        height, width, depth = model.config.block_size
        raise ValueError(
            f"prefix of shape {tuple(prefix.shape)} must be (batch, up to {model.num_positions}, {depth}), or whole "
            f"rows of a code map: (batch, up to {height}, {width}, {depth})"
        )
    check_codes_below("prefix", prefix, model.config.vocab_sizes)
    return prefix.to(device)


def _mask_and_codes(known: Any) -> tuple[Tensor, Tensor]:
    if not isinstance(known, (tuple, list)) or len(known) != 2:
        raise ValueError(f"known must be (mask, codes), not {shown(known)}")
    try:
        mask = torch.as_tensor(known[0])
    except (TypeError, ValueError, RuntimeError):
        raise ValueError(
            f"the mask of known must be truth values in a tensor or an array, not {shown(known[0])}"
        ) from None
    return mask, whole_numbers("known", known[1])


def _known(
    model: RQTransformer, mask: Tensor, codes_BHWD: Tensor, batch_size: int, device: torch.device
) -> tuple[Tensor, Tensor]:
    """(Which codes are given, their values or 0), both (B, T, D)."""
    shape = (batch_size, *model.config.block_size)
    if tuple(codes_BHWD.shape) != shape:
        raise ValueError(f"known codes of shape {tuple(codes_BHWD.shape)} must be {shape}")
    if mask.dtype != torch.bool:
        raise ValueError(f"the mask of known must be of type bool, not {mask.dtype}")
    mask = mask.to(device)
    if tuple(mask.shape) in (shape[:3], shape[1:3]):
        mask = mask.unsqueeze(-1)
    if mask.ndim == 3:
        mask = mask.unsqueeze(0)
    try:
        mask = mask.expand(shape)
    except RuntimeError:
        raise ValueError(
            f"the mask of known has shape {tuple(mask.shape)}; it must be {shape}, {shape[:3]} or {shape[1:3]}"
        ) from None
    codes_BHWD = codes_BHWD.to(device).masked_fill(~mask, 0)
    check_codes_below("known", codes_BHWD, model.config.vocab_sizes)
    return mask.flatten(1, 2), codes_BHWD.flatten(1, 2)


def _condition(model: RQTransformer, cond: Tensor | None, batch_size: int, device: torch.device) -> Tensor:
    cond_BL = model.condition_ids(cond, batch_size, device)
    known = model.cond_emb.num_embeddings
    if cond is not None and cond.numel():  # where it is: on the host nothing waits for the device
        low, high = (int(bound) for bound in cond_BL.aminmax())
        if low < 0 or high >= known:
            given, last = low if low == high else f"{low}..{high}", model.config.vocab_size_cond - 1
            null = f" ({known - 1} is the null condition of guidance)" if model.config.has_null_condition else ""
            raise ValueError(f"condition ids must lie in 0..{last}{null}, not {given}")
    return cond_BL.to(device)


def settings_per_depth(depth: int, **draw: Any) -> list[DrawSettings]:
    """Settings of each depth; every field one value or one per depth. Raises ValueError if out of range."""
    rules = [rule.name for rule in fields(DrawSettings)]
    for name in draw:
        if name not in rules:
            raise TypeError(f"no argument is called {name}; the draw has {', '.join(rules)}")
    columns = []
    for name, value in draw.items():
        value = plain(value)
        values = list(value) if isinstance(value, (list, tuple)) else [value]
        if len(values) == 1:
            values *= depth
        if len(values) != depth:
            raise ValueError(f"{name}={shown(value)} must be one value or one per depth ({depth})")
        columns.append(values)
    return [DrawSettings(**dict(zip(draw, row))) for row in zip(*columns)]
