"""The command line of the entry scripts: flags, and `key=value` overrides anywhere between them."""

from __future__ import annotations

import argparse
import difflib
import re
import sys
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NoReturn

from rqstack.printable import printable
from runtime.errors import EXIT_CODE, LOST_RANK_EXIT_CODE, exit_on_user_error, one_line, say
from runtime.rounds import BACKENDS, DEFAULT_JOIN_SECONDS, DEFAULT_TIMEOUT_SECONDS

if TYPE_CHECKING:
    from runtime.distributed import DistEnv

WORD_COLUMN, HELP_WIDTH = 30, 96
_OVERRIDE = re.compile(r"[+~]{0,2}[A-Za-z_][\w./@:-]*=")


@dataclass(frozen=True)
class ProcessSettings:
    """What the command line says about the processes of a run; the launcher's environment has precedence."""

    timeout: float = DEFAULT_TIMEOUT_SECONDS
    backend: str = "auto"
    local_rank: int | None = None
    world_size: int | None = None
    node_rank: int | None = None
    join_timeout: float = DEFAULT_JOIN_SECONDS

    @classmethod
    def from_flags(cls, args: argparse.Namespace) -> ProcessSettings:
        """Of what a parser of `build_parser` gave."""
        return cls(args.timeout, args.dist_backend, args.local_rank, args.world_size, args.node_rank, args.join_timeout)

    def join(self) -> DistEnv:
        """Joins the process group; see `runtime.distributed.initialize`."""
        # torch takes seconds, for which `--help` must not wait
        from runtime import distributed

        return distributed.initialize(
            self.timeout,
            self.backend,
            join_timeout=self.join_timeout,
            local_rank=self.local_rank,
            world_size=self.world_size,
            node_rank=self.node_rank,
        )


@contextmanager
def exit_in_order(*also: type[BaseException]) -> Iterator[None]:
    """`exit_on_user_error` for a whole program of one process or many, which leaves the process group at its end.

    A process that fails because another one has ended says that, in a line, and exits with `LOST_RANK_EXIT_CODE`.
    """
    with exit_on_user_error(*also):
        try:
            yield
        except RuntimeError as error:
            from runtime import distributed

            if not distributed.lost_a_rank(error):
                raise
            say(
                f"error (rank {distributed.get_rank()}): another process of the run has ended; its own message says "
                f"why ({one_line(error)[:160]})",
                to_stderr=True,
            )
            raise SystemExit(LOST_RANK_EXIT_CODE) from None
        finally:
            # a program that ended at its flags has no group, and must not wait for torch to find that out
            if "runtime.distributed" in sys.modules:
                sys.modules["runtime.distributed"].shutdown()


class ArgumentParser(argparse.ArgumentParser):
    """`argparse` with one-line errors that suggest the nearest flag. `parse_args` gives `overrides`, a list of str.

    Flags are not abbreviated, those of subcommands neither.

    Args:
        example: one or more whole commands, a line each; the last thing that `--help` shows.
        words: the `key=value` words that the command takes, each with what it means.
        takes_words: False for a command without; such a word is then like any other.
        processes: also the flags of the published launch scripts, after all others.
    """

    def __init__(
        self,
        *,
        example: str = "",
        words: Mapping[str, str] | None = None,
        takes_words: bool = True,
        processes: bool = False,
        allow_abbrev: bool = False,
        **options: Any,
    ) -> None:
        sections = {"key=value words, anywhere between the flags": _rows(words or {}), "example": example.splitlines()}
        shown = ["\n  ".join([f"{title}:", *lines]) for title, lines in sections.items() if lines]
        super().__init__(
            allow_abbrev=allow_abbrev,
            epilog="\n\n".join(shown),
            formatter_class=argparse.RawDescriptionHelpFormatter,
            **options,
        )
        self.takes_words, self.processes_to_add = takes_words, processes

    def parse_args(  # type: ignore[override]  # argparse writes the same in overloads
        self, args: Sequence[str] | None = None, namespace: argparse.Namespace | None = None
    ) -> argparse.Namespace:
        if self.processes_to_add:
            self.processes_to_add = False
            _add_distributed_flags(self)
        tokens = list(sys.argv[1:] if args is None else args)
        overrides: list[str] = []
        if self.takes_words:
            tokens, overrides = self._split_overrides(tokens)
        result, unknown = self.parse_known_args(tokens, namespace)
        if unknown:
            self.error(self._describe_unknown(unknown[0]))
        result.overrides = overrides
        return result

    def error(self, message: str) -> NoReturn:
        self.exit(EXIT_CODE, f"error: {printable(message)}\n")

    def _split_overrides(self, tokens: list[str]) -> tuple[list[str], list[str]]:
        """Take the `key=value` words out, except where a flag before them is still waiting for its value."""
        kept, overrides, awaits_value = [], [], False
        for token in tokens:
            if not awaits_value and _OVERRIDE.match(token):
                overrides.append(token)
                continue
            kept.append(token)
            action = self._option_string_actions.get(token)
            awaits_value = action is not None and action.nargs in (None, 1, "+")
        return kept, overrides

    def _describe_unknown(self, token: str) -> str:
        if not token.startswith("-"):
            hint = "; overrides are written key=value" if self.takes_words else ""
            return f"unexpected argument {token!r}{hint}"
        flag = token.split("=")[0]
        nearest = difflib.get_close_matches(flag, list(self._option_string_actions), n=1, cutoff=0.5)
        return f"unknown flag {flag}" + (f"; did you mean {nearest[0]}?" if nearest else "; -h lists the flags")


def _rows(words: Mapping[str, str]) -> list[str]:
    """`key=VALUE  what it means`, wrapped."""
    lines: list[str] = []
    for word, meaning in words.items():
        indent = " " * WORD_COLUMN
        first = f"{word:<{WORD_COLUMN}}" if len(word) < WORD_COLUMN else f"{word}  "
        lines += textwrap.wrap(f"{first}{meaning}", HELP_WIDTH, subsequent_indent=indent, break_on_hyphens=False)
    return lines


def build_parser(description: str, example: str = "", words: Mapping[str, str] | None = None) -> ArgumentParser:
    """A parser with `--seed` and the flags of the published launch scripts.

    Entry scripts add their own flags; `parse_args().overrides` holds the `key=value` words. `example` and `words`: see
    `ArgumentParser`.
    """
    parser = ArgumentParser(description=description, example=example, words=words, processes=True)
    parser.add_argument("--seed", type=int, default=0, help="seed of everything random (default: 0)")
    return parser


def _add_distributed_flags(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("processes", "torchrun and torch.distributed.launch supply these themselves")
    group.add_argument("--local-rank", "--local_rank", type=int, help="number of this process on its node")
    group.add_argument("--world-size", "--world_size", type=int, help="number of processes, as the launcher says")
    group.add_argument("--node-rank", "--node_rank", type=int, help="number of this node, as the launcher says")
    group.add_argument("--dist-backend", choices=BACKENDS, default="auto", help="auto: nccl on GPUs, gloo on CPUs")
    group.add_argument(
        "--timeout",
        type=float,
        default=DEFAULT_TIMEOUT_SECONDS,
        help=f"seconds to wait for other processes (default: {DEFAULT_TIMEOUT_SECONDS})",
    )
    group.add_argument(
        "--join-timeout",
        type=float,
        default=DEFAULT_JOIN_SECONDS,
        help=f"seconds to wait at the start until all processes have come (default: {DEFAULT_JOIN_SECONDS})",
    )
