"""Wrong command lines, drawn from a seed over every command a user has.

Flags come from the commands' own parsers and config keys from the schemas, so that a new flag or key is tried as well.
What a word means is `{out}`, `{missing}`, `{binary}`, ... until the test puts its own paths there.
"""

from __future__ import annotations

import argparse
import random
from collections.abc import Iterator, Sequence
from dataclasses import fields, is_dataclass
from typing import Any, NamedTuple, cast, get_args, get_origin, get_type_hints

import pytest

from data.config import DatasetConfig
from measure_throughput.experiment import Experiment
from scoring.settings import ComparisonConfig
from tests.commands import run_here
from training.stages.stage1 import Stage1Config
from training.stages.stage2 import Stage2Config

SAMPLING = ("-v", "{one}", "--save-dir", "{out}", "--no-stats-saving", "--no-tensorboard")
# command -> words that would be right, but for what the machine of the test lacks
COMMANDS: dict[str, tuple[str, ...]] = {
    "main_stage1.py": ("-m", "{config1}", "-r", "{out}"),
    "main_stage2.py": ("-m", "{config2}", "-v", "{one}", "-r", "{out}"),
    "main_sampling_fid.py": ("-a", "{two}", *SAMPLING, "-n", "2"),
    "main_sampling_txt2img.py": ("-a", "{text}", *SAMPLING, "--prompt", "a red disc"),
    "compute_rfid.py": ("--vqvae", "{one}"),
    "compute_metrics.py": ("fake_path={images}", "ref_dataset=synthetic", "--out", "{out}/line.json"),
    "extract_codes.py": ("-v", "{one}", "--num-workers", "0", "{out}/codes"),
    "data.prepare": ("--dataset", "synthetic", "{out}/shards", "num_samples=4", "resolution=8"),
    "data.export": ("--dataset", "synthetic", "--split", "val", "{out}/x.npz", "num_samples=4", "resolution=8"),
    "data.tokenizers train": ("{captions}", "--vocab-size", "300", "--out", "{out}/tokens"),
    "data.tokenizers show": ("{missing}",),
    "data.download_cc3m": ("{urls}", "--out", "{out}/cc3m", "--split", "train"),
    "scoring.reference": ("make", "{images}", "--output", "{out}/x.npz"),
    "evaluation.networks": ("where", "lpips-vgg"),
    "rqtransformer.pretrained inspect": ("{one}",),
    "rqtransformer.pretrained convert": ("{one}", "--out", "{out}/new"),
    "measure_throughput": ("--output-dir", "{out}/speed"),
    "benchmarks.gpu": ("--out", "{out}/gpu"),
}
SCHEMAS: dict[str, type] = {
    "main_stage1.py": Stage1Config,
    "main_stage2.py": Stage2Config,
    "compute_metrics.py": ComparisonConfig,
    "data.prepare": DatasetConfig,
    "data.export": DatasetConfig,
    "measure_throughput": Experiment,
}
# what must be there to be read; wherever one of these flags exists, these are mistakes
READ = ("--model-config", "--load-path", "--vqvae", "--model-ar-path", "--model-vqvae-path")
NO_FILES = ("{missing}", "{folder}", "{binary}", "{empty}", "{missing}/ü ñ 漢字", "'", "[", "")
NO_NUMBERS = ("x", "", "null", "[1", "'1", "{a: 1", "½", "1,5", "0x1F", "true", "ü" * 9, "9" * 4400 + "x", "a\nb")
HUGE = "9" * 26
NO_INTEGERS = (*NO_NUMBERS, "1.5", "1e3", "inf", "nan")
CONTRADICTIONS: dict[str, tuple[tuple[str, ...], ...]] = {
    "main_stage1.py": (
        ("--eval", "--resume", "-l", "{one}"),
        ("--eval",),
        ("--resume", "-p", "x"),
        ("--resume", "-e", "3", "-l", "{one}"),
        ("optimizer.grad_accm_steps=4", "experiment.total_batch_size=8"),
        ("-l", "{two}"),
    ),
    "main_stage2.py": (("--eval", "--auto-resume", "-l", "{two}"), ("-v", "{two}"), ("-l", "{one}"), ("--eval",)),
    "main_sampling_fid.py": (("-a", "{one}"), ("-v", "{two}"), ("--reject-model", "resnet18"), ("--top-k", "1", "2")),
    "main_sampling_txt2img.py": (("-n", "3"), ("--dataset", "synthetic"), ("-a", "{two}")),
    "compute_rfid.py": (("--depth", "1", "--per-depth"), ("--vqvae", "{two}")),
    "data.prepare": (("--verify",),),
    "evaluation.networks": (("fetch", "verify"),),
    "measure_throughput": (("--batches", "1", "2"), ("warmup=6",)),
    "benchmarks.gpu": (("--device", "cpu"),),
}


class Invocation(NamedTuple):
    """A command with a mistake in it; `changes` are made in its config file, by dotted key."""

    command: str
    words: tuple[str, ...]
    changes: tuple[tuple[str, Any], ...] = ()

    def __str__(self) -> str:
        shown = " ".join(repr(word if len(word) < 60 else f"{word[:40]}...({len(word)})") for word in self.words)
        return f"{self.command} {shown} {dict(self.changes) or ''}"


class _Found(BaseException):
    pass


def parser_of(command: str) -> argparse.ArgumentParser:
    """The parser that a command makes, or that of its subcommand."""
    name, _, action = command.partition(" ")

    def caught(parser: argparse.ArgumentParser, *_: Any) -> Any:
        raise _Found(parser)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(argparse.ArgumentParser, "parse_known_args", caught)
        try:
            run_here(name)
        except _Found as found:
            parser: argparse.ArgumentParser = found.args[0]
    if not action:
        return parser
    (commands,) = (each for each in parser._actions if isinstance(each, argparse._SubParsersAction))
    return cast("argparse.ArgumentParser", commands.choices[action])


def wrong_values(action: argparse.Action, flag: str) -> list[str]:
    """What an option with a value cannot take."""
    values: list[str] = []
    if action.choices is not None:
        first = str(next(iter(action.choices), "x"))
        values += [first + "x", first.upper() + "!", "", "null", "ü" + first, "[" + first, first * 500]
    elif action.type is int:
        values += NO_INTEGERS
    elif action.type is float:
        values += NO_NUMBERS
    if flag in READ:
        values += NO_FILES[: -1 if flag in ("--load-path", "--vqvae") else None]  # empty there is: none
    return values


def flag_mistakes(command: str) -> Iterator[list[Invocation]]:
    """For each flag of a command the mistakes that can be made with it."""
    right = COMMANDS[command]
    options = parser_of(command)._option_string_actions
    for action in dict.fromkeys(options.values()):
        if isinstance(action, argparse._HelpAction):
            continue
        flags = [flag for flag in action.option_strings if flag.startswith("--")] or action.option_strings
        long = flags[0]
        near = [word for word in (long + "x", long[:-1], long.replace("-", "_", 3), "-" + long) if word not in options]
        wrong: list[tuple[str, ...]] = [(word,) for word in near if word.startswith("-")]
        if action.nargs == 0:
            wrong += [(f"{long}=1",), (f"{long}=",), (f"{long}=ü",)]
        else:
            wrong += [(long,)]
            wrong += [(f"{long}={value}",) for value in wrong_values(action, long)]
        yield [Invocation(command, (*right, *words)) for words in wrong]


def keys_of(schema: type, before: str = "") -> Iterator[tuple[str, Any, bool]]:
    """Every key of a schema with its type, and whether it may be null."""
    hints = get_type_hints(schema)
    for field in fields(schema):
        hint, optional = hints[field.name], False
        if type(None) in get_args(hint):
            rest = [each for each in get_args(hint) if each is not type(None)]
            hint, optional = (rest[0] if len(rest) == 1 else Any), True
        yield before + field.name, hint, optional
        if is_dataclass(hint):
            yield from keys_of(cast("type", hint), f"{before}{field.name}.")


def key_mistakes(command: str, known: Sequence[tuple[str, Any, bool]]) -> Iterator[list[Invocation]]:
    """For each config key the values it cannot take, on the command line or in the file, and names near it."""
    right = COMMANDS[command]
    names = {key for key, _, _ in known}
    for key, hint, optional in known:
        texts, values = [], []
        if hint is bool:
            texts, values = ["maybe", "[true]", "{a:1}", "1.5", "ü"], ["maybe", [True], {"a": 1}, 1.5, "ü"]
        elif hint is int:
            texts, values = ["four", "1.5", "[1,2]", "ü", "nan", HUGE], ["four", 1.5, [1, 2], "½", 10**26]
        elif hint is float:
            texts, values = (
                ["fast", "[0.5]", "{a:1}", "''", "½", "nan"],
                ["fast", [0.5], {"a": 1}, "", "½", float("nan")],
            )
        elif is_dataclass(hint) or get_origin(hint) is list:
            texts, values = ["5", "text", "true"], [5, "text", True]
        if texts:
            texts += ["[1,2", "'x", '"x', "{a:", "x]", "1,2", "${nothing.there}", "${", "x" * 3000]
            values += ["${nothing.there}", "x" * 3000]
        if texts and not optional and hint in (bool, int, float):
            texts, values = [*texts, "null"], [*values, None]
        wrong = [Invocation(command, (*right, f"{key}={text}")) for text in texts]
        wrong += [Invocation(command, (*right, f"{near}=1")) for near in (key + "s", key[:-1]) if near not in names]
        if command in ("main_stage1.py", "main_stage2.py"):
            wrong += [Invocation(command, right, ((key, value),)) for value in values]
            wrong += [Invocation(command, right, ((key + "x", 1),))]
        yield wrong


def word_mistakes(command: str) -> list[Invocation]:
    """Words that no command takes, words left out, and pairs that contradict each other."""
    right = COMMANDS[command]
    strays = ("--no-such-flag", "--ünknown", "-Z", "=", "=1", "--" + "x" * 900, "nosuchkey=1", "ключ=1", "a=[", "a='")
    wrong = [Invocation(command, (*right, word)) for word in strays]
    return wrong + [Invocation(command, (*right, *words)) for words in CONTRADICTIONS.get(command, ())]


def wrong_invocations(count: int, seed: int) -> list[Invocation]:
    """`count` different ones: a mistake with each flag, then with each key as far as they go, then with any again."""
    draw = random.Random(seed)
    of_flags, of_keys = [], []
    for command in COMMANDS:
        of_flags += [*flag_mistakes(command), *([wrong] for wrong in word_mistakes(command))]
        if command in SCHEMAS:
            of_keys += list(key_mistakes(command, list(keys_of(SCHEMAS[command]))))
    drawn, rest = [], []
    for groups in (of_flags, of_keys):
        draw.shuffle(groups)
        for group in groups:
            draw.shuffle(group)
            drawn += group[:1]
            rest += group[1:]
    draw.shuffle(rest)
    return [*drawn, *rest][:count]
