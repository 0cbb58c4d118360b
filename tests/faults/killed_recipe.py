"""Kills a recipe at random moments and shows that it ends with the numbers of one that nobody touched.

    python -m tests.faults.killed_recipe NAME --alone runs/recipes [--kills 3] [--seed 0] [--summary FILE] [-- FLAGS]

`--alone` is where `python -m benchmarks.recipes NAME` has run to its end. The same recipe starts in another folder.
After a random part of the time that it took alone, it and all its processes get `kill -9`, and it is started again;
this as often as asked. Then it goes on to its end. Its row and the weights of both stages are compared with those
of the recipe that ran alone. What stands after `--` is given to the recipe. The last line is the summary as JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from benchmarks.recipes.recipe_table import RECIPES
from benchmarks.recipes.steps import Steps
from rqstack.archive import newest_snapshot
from rqstack.snapshots import METADATA_FILE
from runtime.atomic import write_text_atomically
from tests.repository import ROOT

OF_THE_MACHINE = {"minutes", "peak_gb", "interrupted", "machine"}  # of a row
POLL_SECONDS, LIMIT_SECONDS = 1.0, 6 * 3600.0


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.faults.killed_recipe", description=__doc__.splitlines()[0])
    parser.add_argument("name", choices=RECIPES)
    parser.add_argument("--alone", type=Path, required=True, help="--out of the recipe that nobody touched")
    parser.add_argument("--out", type=Path, required=True, help="of the one that is killed; a new folder")
    parser.add_argument("--kills", type=int, default=3)
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    parser.add_argument("--summary", type=Path)
    words = sys.argv[1:] if argv is None else argv
    split = words.index("--") if "--" in words else len(words)
    args = parser.parse_args(words[:split])
    args.flags = words[split + 1 :]
    return args


def start(args: argparse.Namespace) -> subprocess.Popen[bytes]:
    """The recipe, in a process group of its own."""
    places = ["--out", str(args.out), "--results", str(args.out / "rows"), "--docs", str(args.out)]
    (args.out / "recipes.md").write_text((ROOT / "docs" / "recipes.md").read_text(encoding="utf-8"), encoding="utf-8")
    command = [sys.executable, "-m", "benchmarks.recipes", args.name, *places, *args.flags]
    return subprocess.Popen(command, cwd=ROOT, start_new_session=True)


def kill(args: argparse.Namespace, seconds: float) -> dict[str, Any]:
    """Starts the recipe and kills all of it after so many seconds; what it was doing then."""
    process = start(args)
    ends = time.monotonic() + seconds
    while time.monotonic() < ends:
        if process.poll() is not None:
            raise SystemExit(f"the recipe ended by itself with {process.returncode} before it could be killed")
        time.sleep(POLL_SECONDS)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    steps = Steps(args.out / args.name).known.items()
    return {"after_seconds": round(seconds), "during": next((name for name, one in steps if not one["done"]), None)}


def compared(args: argparse.Namespace) -> dict[str, Any]:
    """Whether row and weights are those of the recipe that ran alone, and where they differ."""
    rows = [json.loads((out / args.name / "row.json").read_text(encoding="utf-8")) for out in (args.alone, args.out)]
    recipe = RECIPES[args.name]
    weights = {}
    for stage, config in (("stage1", recipe.stage1), ("stage2", recipe.stage2)):
        digests = []
        for out in (args.alone, args.out):
            snapshot = newest_snapshot(Steps(out / args.name).run_dir(stage, config))
            assert snapshot is not None
            digests.append(json.loads((snapshot / METADATA_FILE).read_text(encoding="utf-8"))["sha256"])
        weights[stage] = digests[0] == digests[1]
    differing = {key: [row.get(key) for row in rows] for key in rows[0] if rows[0][key] != rows[1].get(key)}
    return {"weights_identical": weights, "numbers_identical": not differing, "differing": differing}


def main(argv: list[str] | None = None) -> None:
    args = parse(argv)
    args.out.mkdir(parents=True)
    moments = random.Random(args.seed)
    alone = 60 * Steps(args.alone / args.name).minutes
    kills = [kill(args, moments.uniform(0.1, 0.9) * alone / args.kills) for _ in range(args.kills)]
    if code := start(args).wait(LIMIT_SECONDS):
        raise SystemExit(f"the recipe ended with {code}")
    result = {"recipe": args.name, "flags": args.flags, "seed": args.seed, "kills": kills, **compared(args)}
    if args.summary is not None:
        write_text_atomically(args.summary, json.dumps(result) + "\n")
    print(json.dumps(result))


if __name__ == "__main__":
    main()
