"""The two models of a command, checked before anything is drawn."""

from __future__ import annotations

from pathlib import Path

import torch

from rqstack.archive import read_archive
from rqstack.finite import non_finite_names
from rqstack.printable import first_line
from rqstack.snapshots import weights_digest
from rqtransformer import RQTransformer, load_rqtransformer
from rqvae import RQVAE, load_rqvae


def chosen_device(name: str | None) -> torch.device:
    """The device of that name; a GPU where there is one and none is named. ValueError for one that cannot be had."""
    if name is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        return torch.zeros(0, device=name).device
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"--device {name} cannot be had: {first_line(error)}") from None


def load_stage1(path: Path, device: torch.device, ema: bool = False) -> RQVAE:
    """The RQ-VAE of a checkpoint, whose weights are finite."""
    model = load_rqvae(path, ema=ema, device=device)
    if names := non_finite_names(model.state_dict().items()):
        raise ValueError(f"the weights of {path} are not finite: {names}")
    return model


def load_both(stage1: Path, stage2: Path, device: torch.device, ema: bool = False) -> tuple[RQVAE, RQTransformer]:
    """Both models of a command; stage 1 with its averaged weights where stage 2 was trained on their codes.

    Args:
        ema: take the averaged weights of stage 2.

    Raises:
        ValueError: they do not belong together, or have weights that are not finite.
    """
    section = (read_archive(stage2, wanted=()).config or {}).get("vqvae") or {}
    tokenizer = load_stage1(stage1, device, ema=bool(section.get("ema")))
    model = load_rqtransformer(stage2, ema=ema, device=device)
    if names := non_finite_names(model.state_dict().items()):
        raise ValueError(f"the weights of {stage2} are not finite: {names}")
    ours = (list(model.config.block_size), list(model.config.vocab_sizes))
    theirs = (list(tokenizer.config.code_shape), list(tokenizer.quantizer.num_codes))
    if ours != theirs:
        raise ValueError(f"{stage2} writes codes {ours[0]} of {ours[1]}, {stage1} reads {theirs[0]} of {theirs[1]}")
    if model.metadata.get("tokenizer") not in (None, weights_digest(tokenizer)):
        raise ValueError(f"{stage2} was trained on the codes of other stage-1 weights than {stage1}")
    return tokenizer, model


def class_number(name: str, model: RQTransformer) -> int:
    """The class of that name or number; ValueError with the choices for one that the model does not have."""
    names, count = model.metadata.get("class_names"), model.config.vocab_size_cond
    known = [str(entry) for entry in names[:count]] if isinstance(names, list) else []
    if name in known:
        return known.index(name)
    if name.isdecimal() and len(name) < 10 and int(name) < count:
        return int(name)
    some = ", ".join(known[:10]) + (", ..." if len(known) > 10 else "")
    raise ValueError(f"--class {name[:80]} is none of the model's: {some + ', or ' if known else ''}0..{count - 1}")


def classes_of(class_name: str | None, num: int, model: RQTransformer, *, in_turn: bool) -> torch.Tensor | None:
    """What `num` images are asked to show: class ids, or None for a model without condition or a null one.

    Args:
        in_turn: without a class, take all of them in turn.

    Raises:
        ValueError: what the model needs is missing, or it takes nothing of the kind.
    """
    config = model.config
    if config.block_size_cond > 1:
        raise ValueError(
            "this model was trained on captions, whose tokenizer is no part of the libraries: "
            "use main_sampling_txt2img.py of the repository"
        )
    if config.vocab_size_cond < 2:
        if class_name is not None:
            raise ValueError("--class is for a model with classes: this one has none")
        return None
    if class_name is not None:
        return torch.full((num,), class_number(class_name, model))
    if in_turn:
        return torch.arange(num) % config.vocab_size_cond
    if config.has_null_condition:
        return None
    raise ValueError(f"this model has classes: give --class (0..{config.vocab_size_cond - 1}, or a name)")
