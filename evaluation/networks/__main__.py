"""The weight files of feature networks:

python -m evaluation.networks fetch     download what is missing into the cache, after checking its SHA-256
python -m evaluation.networks verify    compare the SHA-256 of what is there
python -m evaluation.networks where     print where each file is, or would be looked for
"""

from __future__ import annotations

import os
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path

from evaluation.networks import weight_files
from evaluation.networks.weight_files import fetch_weights, find_weights
from runtime.cli import ArgumentParser
from runtime.errors import UserError, exit_on_user_error, say


def parse(words: Sequence[str] | None = None) -> Namespace:
    parser = ArgumentParser(
        prog="python -m evaluation.networks",
        description="Weights of feature networks.",
        example="python -m evaluation.networks where",
        takes_words=False,
    )
    parser.add_argument(
        "action",
        choices=("fetch", "verify", "where"),
        help="fetch: download; verify: compare with the published hash; where: which file is looked for",
    )
    parser.add_argument("name", nargs="?", choices=tuple(weight_files.WEIGHTS), help="one file (default: all)")
    parser.add_argument("--url", help="fetch from here instead (needs a name)")
    parser.add_argument(
        "--allow-private", action="store_true", help="fetch from an address of this machine or its network as well"
    )
    parser.add_argument("--path", help="this file instead of the usual places (needs a name)")
    args = parser.parse_args(words)
    if (args.url or args.path) and args.name is None:
        parser.error(f"--url and --path need a name: {', '.join(weight_files.WEIGHTS)}")
    return args


def main(args: Namespace) -> None:
    for name in [args.name] if args.name else weight_files.WEIGHTS:
        source = weight_files.WEIGHTS[name]
        if args.action == "fetch":
            say(f"{name}: {fetch_weights(source, args.url, args.path, args.allow_private)}")
            continue
        path = Path(args.path or os.environ.get(source.environment) or source.cached).expanduser()
        if args.action == "where":
            say(
                f"{name}: {path} ({'there' if path.is_file() else 'missing'}); set by --features-weights, "
                f"{source.environment}, or {source.cached}; published at {source.url}"
            )
            continue
        found, sha256 = find_weights(source, path)
        if not source.matches(sha256):
            raise UserError(
                f"{found} is not the published file: its SHA-256 is {sha256}, expected "
                f"{source.sha256 or source.sha256_prefix}"
            )
        say(f"{name}: {found} is the published file, SHA-256 {sha256}")


if __name__ == "__main__":
    with exit_on_user_error(ValueError, OSError):
        main(parse())
