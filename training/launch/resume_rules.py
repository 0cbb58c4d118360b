"""What a resumed run does with a setting that is not the one it had: every key of both schemas has a rule here.

Applied settings hold from the step on where the run is resumed, and are written to its `config.yaml`. All others are
refused by name: nothing that the command line says is left aside without a word.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields, is_dataclass
from typing import Any

from runtime.errors import UserError

APPLIED, ONCE, REFUSED = "applied", "applied, not recorded", "refused"
_ABSENT = object()


@dataclass(frozen=True)
class ResumeRule:
    """One row of the table.

    Args:
        keys: config keys; a section stands for all below it that no longer key of another row names.
        effect: `APPLIED`, `ONCE` or `REFUSED`.
        why: the condition of an applied key, the reason of a refused one.
    """

    keys: tuple[str, ...]
    effect: str
    why: str


def _keys(section: str, names: str) -> tuple[str, ...]:
    return tuple(f"{section}.{name}" for name in names.split())


_BLOCK_DROPOUTS = tuple(
    f"arch.{stack}.block.{name}" for stack in ("body", "head") for name in ("attn_pdrop", "resid_pdrop")
)
RULES = (
    ResumeRule(("seed",), REFUSED, "order and noise follow from it"),
    ResumeRule(("experiment.batch_size", "experiment.total_batch_size"), APPLIED, "a step keeps its number of images"),
    ResumeRule(("optimizer.grad_accm_steps",), APPLIED, "a step keeps its number of images"),
    ResumeRule(
        ("experiment.epochs", "experiment.max_steps"),
        APPLIED,
        "the learning rate follows the new length; the log says from what to what it jumps",
    ),
    ResumeRule(
        _keys(
            "experiment",
            "save_ckpt_freq save_steps save_minutes test_freq test_steps log_steps keep_checkpoints keep_every_steps "
            "keep_snapshots async_checkpoint test_images grid_images sample score count_flops "
            "console report loggers",
        ),
        APPLIED,
        "what is logged and kept",
    ),
    ResumeRule(
        _keys(
            "experiment",
            "non_finite max_skipped_steps max_worker_deaths spike_factor spike_window min_code_usage hang_timeout "
            "signal_steps",
        ),
        APPLIED,
        "what is watched",
    ),
    ResumeRule(
        _keys(
            "experiment",
            "amp precision parallel channels_last compile deterministic gradient_checkpointing num_workers",
        )
        + ("arch.checkpointing",),
        APPLIED,
        "how it is computed",
    ),
    ResumeRule(("optimizer", "gan.disc.optimizer"), APPLIED, "the moments stay"),
    ResumeRule(("optimizer.type", "gan.disc.optimizer.type"), REFUSED, "the moments are those of this optimizer"),
    ResumeRule(("gan.disc.optimizer.grad_accm_steps",), REFUSED, "the discriminator takes optimizer.grad_accm_steps"),
    ResumeRule(("loss", "gan.loss"), APPLIED, "schedules count from the start of the run"),
    ResumeRule(("gan",), REFUSED, "the discriminator's weights are part of the run"),
    ResumeRule(("arch",), REFUSED, "the weights are those of this model"),
    ResumeRule(("arch.ddconfig.dropout", "arch.embd_pdrop", *_BLOCK_DROPOUTS), APPLIED, "no weights depend on it"),
    ResumeRule(("dataset.root",), APPLIED, "the images are the same, or dataset.accept_changed=true"),
    ResumeRule(
        _keys("dataset", "val_fraction split_seed num_samples class_folders val_captions"),
        APPLIED,
        "the images are the same, or dataset.accept_changed=true",
    ),
    ResumeRule(_keys("dataset", "hflip random_shift bpe_dropout"), APPLIED, "augmentation"),
    ResumeRule(_keys("dataset", "max_corrupt max_image_pixels shard_cache shard_cache_size"), APPLIED, "limits"),
    ResumeRule(_keys("dataset", "accept_changed accept_seen"), ONCE, "said anew for every change"),
    ResumeRule(("dataset",), REFUSED, "what the run was trained on, in which order"),
    ResumeRule(("vqvae.ckpt",), APPLIED, "the weights are the same, wherever they lie"),
    ResumeRule(("vqvae.precision",), APPLIED, "how it is computed"),
    ResumeRule(("vqvae",), REFUSED, "the run is trained on the codes of these weights"),
    ResumeRule(("sampling",), APPLIED, "defaults of the sampling scripts"),
)


@dataclass(frozen=True)
class Change:
    """A setting of a resumed run that is not the one it had."""

    key: str
    before: Any
    after: Any

    def __str__(self) -> str:
        return f"{self.key}={_short(self.after)} (was {_short(self.before)})"


def rule_of(key: str) -> ResumeRule:
    """The row whose key is `key` or the nearest section around it."""
    while key:
        for rule in RULES:
            if key in rule.keys:
                return rule
        key = key.rpartition(".")[0]
    raise AssertionError("a config key without a rule")


def changes(before: Any, after: Any) -> list[Change]:
    """The settings of two configs of one schema that differ."""
    old, new = dict(settings_of(before)), dict(settings_of(after))
    keys = [*old, *(key for key in new if key not in old)]
    found = [Change(key, old.get(key, _ABSENT), new.get(key, _ABSENT)) for key in keys]
    return [change for change in found if change.before != change.after]


def allowed_changes(before: Any, after: Any) -> list[Change]:
    """`changes`; UserError naming the first setting that a resumed run cannot change."""
    found = changes(before, after)
    for change in found:
        rule = rule_of(change.key)
        # a section that is there or not: with it whole objects come or go
        appears = _is_section(change) and rule.effect != REFUSED and not change.key.startswith("sampling")
        if rule.effect == REFUSED or appears:
            why = "it was begun " + ("without" if change.before is None else "with") if appears else rule.why
            raise UserError(
                f"{change.key}={_short(change.after)}: the resumed run has {_short(change.before)} and cannot change "
                f"it ({why}); start a new run"
            )
    return found


def settings_of(config: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted key and value of every setting; of a section that is not there, its key and None."""
    for field in fields(config):
        value = getattr(config, field.name)
        if is_dataclass(value):
            yield from settings_of(value, f"{prefix}{field.name}.")
        else:
            yield prefix + field.name, value


def flattened(mapping: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Dotted keys of nested mappings."""
    flat: dict[str, Any] = {}
    for name, value in mapping.items():
        nested = isinstance(value, Mapping) and value
        flat |= flattened(value, f"{prefix}{name}.") if nested else {f"{prefix}{name}": value}
    return flat


def resume_table() -> str:
    """The rules as the table of docs/checkpoints.md."""
    lines = ["| keys | with `--resume` | |", "|---|---|---|"]
    lines += [f"| {', '.join(f'`{key}`' for key in rule.keys)} | {rule.effect} | {rule.why} |" for rule in RULES]
    return "\n".join(lines) + "\n"


def _is_section(change: Change) -> bool:
    return _ABSENT in (change.before, change.after) and None in (change.before, change.after)


def _short(value: Any) -> str:
    text = "nothing" if value is _ABSENT else "null" if value is None else str(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
