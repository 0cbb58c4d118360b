"""The paper's claims on Fashion-MNIST, seed by seed: `python -m benchmarks.paper_claims [--claims a b] [--minutes 60]`.

Runs what has not run yet with this code (see `benchmarks.paper_claims.results`), claim by claim; a run that is cut
short goes on where it stopped when the command is given again, and several processes may share the work. Then writes
the tables into docs/paper_claims.md, a figure per claim beside it, and paper_claims_<size>.json; ends with one JSON
line. `--report` only writes.
"""

from __future__ import annotations

import argparse
import json
import platform
import time
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock

from benchmarks.outputs.document_section import write_section
from benchmarks.paper_claims.claims import Cell, Claim, claims_of
from benchmarks.paper_claims.figures import draw_figure
from benchmarks.paper_claims.results import Results, code_version
from benchmarks.paper_claims.runs import Run
from benchmarks.paper_claims.sizes import SIZES, Size
from benchmarks.paper_claims.tables import as_json, evaluate, look_up, markdown
from data import DatasetConfig
from runtime.atomic import write_text_atomically
from runtime.cli import ArgumentParser
from runtime.distributed import DistEnv
from runtime.errors import UserError, exit_on_user_error

NAME = "paper_claims"


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    parser = ArgumentParser(
        prog=f"python -m benchmarks.{NAME}",
        description=__doc__.splitlines()[0],
        takes_words=False,
        example=f"python -m benchmarks.{NAME} --plan",
    )
    parser.add_argument("--claims", nargs="+", metavar="LETTER", help="only these (default: all)")
    parser.add_argument("--size", choices=SIZES, default="cpu", help="default: cpu; gpu: hours of a GPU")
    parser.add_argument("--seeds", type=int, nargs="+", help="default: 0 1 2")
    parser.add_argument("--data-root", help="folder of Fashion-MNIST's files (see data/README.md)")
    places = parser.add_argument_group("places")
    places.add_argument("--work", type=Path, default=Path("runs") / NAME, help=f"models (default: runs/{NAME})")
    places.add_argument("--results", type=Path, default=Path("benchmarks/results"), help="default: benchmarks/results")
    places.add_argument("--docs", type=Path, default=Path("docs"), help="table and figures (default: docs)")
    parser.add_argument("--minutes", type=float, help="start no run after so many")
    parser.add_argument("--any-code", action="store_true", help="also take results of other versions of the code")
    parser.add_argument("--report", action="store_true", help="run nothing, write what is known")
    parser.add_argument("--plan", action="store_true", help="list the runs and whether they are done, and stop")
    return parser.parse_args(argv)


class Runner:
    """Runs what is missing, with what it needs."""

    def __init__(self, args: argparse.Namespace, size: Size, results: Results) -> None:
        self.results = results
        self.end = None if args.minutes is None else time.monotonic() + 60 * args.minutes
        device = torch.device("cuda" if size.name == "gpu" and torch.cuda.is_available() else "cpu")
        # with them comes all of training
        from benchmarks.paper_claims.executing import Workplace, execute, is_trained

        self.execute, self.is_trained = execute, is_trained
        dataset = DatasetConfig(type="fashion-mnist", root=args.data_root, resolution=size.resolution)
        self.place = Workplace(args.work, dataset, DistEnv(0, 1, 0, device, "none"))

    @property
    def time_is_over(self) -> bool:
        """Whether no further run may start."""
        return self.end is not None and time.monotonic() > self.end

    def run(self, run: Run, model: bool = False) -> None:
        """Makes sure of the result of a run.

        Args:
            model: also of its model, where the result came from elsewhere.
        """
        if self._is_done(run, model):
            return
        for needed in run.needs:
            self.run(needed, model=True)
        with self._lock(run):
            self.results.read()  # another process may have made it meanwhile
            if not self._is_done(run, model):
                self._execute(run)

    def _is_done(self, run: Run, model: bool) -> bool:
        known = self.results.find(run) is not None
        return known and (not model or self.is_trained(run, self.place, key_of(run)))

    def _lock(self, run: Run) -> FileLock:
        """One process at a time for each run: several may be given different claims."""
        self.place.folder.mkdir(parents=True, exist_ok=True)
        return FileLock(self.place.folder / f"{key_of(run)}.lock")

    def _execute(self, run: Run) -> None:
        print(f"{time.strftime('%H:%M:%S')} {run}", flush=True)
        _ = self.place.extractor  # its training is nobody's time
        started, cpu = time.perf_counter(), time.process_time()
        result = self.execute(run, self.place, key_of)
        about = {
            "seconds": round(time.perf_counter() - started, 1),
            "cpu_seconds": round(time.process_time() - cpu, 1),
            "torch": torch.__version__,
            "machine": platform.machine(),
            "device": str(self.place.env.device),
            "threads": torch.get_num_threads(),
        }
        self.results.add(run, result, about)
        print(json.dumps({"run": str(run), **about, **result}), flush=True)


def key_of(run: Run) -> str:
    """Name of a run's result and folder with this code."""
    return run.key(code_version(run.kind))


def chosen(size: Size, letters: list[str] | None) -> dict[str, Claim]:
    """The claims asked for; UserError for a letter that stands for none."""
    claims = claims_of(size)
    unknown = [letter for letter in letters or () if letter not in claims]
    if unknown:
        raise UserError(f"--claims {' '.join(unknown)}: choose from {', '.join(claims)}")
    return claims if letters is None else {letter: claims[letter] for letter in letters}


def report(args: argparse.Namespace, size: Size, seeds: list[int], results: Results) -> dict[str, Any]:
    """Writes tables and figures of all claims; gives the JSON line."""
    sections, found = [], {}
    used: dict[str, dict[str, Any]] = {}

    def find(cell: Cell) -> float | None:
        line = results.find(cell.run)
        if line is None:
            return None
        used[line["key"]] = line
        return look_up({**line["result"], "cpu_seconds": line["cpu_seconds"]}, cell.path)

    for letter, claim in claims_of(size).items():
        finding = evaluate(claim, size, seeds, find)
        found[letter] = as_json(claim, finding)
        figure = args.docs / NAME / f"{size.name}_{letter}.png"
        drawn = draw_figure(figure, letter, claim, finding)
        picture = [f"![The table as a figure]({NAME}/{figure.name})"] if drawn else []
        sections.append("\n\n".join([markdown(letter, claim, finding, len(seeds)), *picture]))
    line = {
        "benchmark": NAME,
        "size": size.name,
        "seeds": seeds,
        "runs": len(used),
        "cpu_minutes": round(sum(kept["cpu_seconds"] for kept in used.values()) / 60, 1),
        "torch": sorted({kept["torch"] for kept in used.values()}),
        "code": sorted({kept["code"] for kept in used.values()}),
        "claims": found,
    }
    write_text_atomically(args.results / f"{NAME}_{size.name}.json", json.dumps(line) + "\n")
    write_section(args.docs / f"{NAME}.md", f"{NAME} {size.name}", "\n\n".join([facts(line), *sections]))
    return line


def facts(line: dict[str, Any]) -> str:
    """What stands above the tables."""
    return (
        f"`python -m benchmarks.{NAME} --size {line['size']}`: {line['runs']} runs, {line['cpu_minutes']:.0f} minutes "
        f"of processor time in all, torch {', '.join(line['torch'])}, code {', '.join(line['code'])}; mean ± standard "
        f"deviation over seeds {', '.join(map(str, line['seeds']))}."
    )


def main(argv: list[str] | None = None) -> None:
    args = parse(argv)
    size = SIZES[args.size]
    seeds, claims = list(args.seeds or size.seeds), chosen(size, args.claims)
    results = Results(args.results / f"{NAME}_runs.jsonl", args.any_code)
    if args.plan:
        for letter, claim in claims.items():
            for run in (run for seed in seeds for run in claim.runs(size, seed)):
                print(f"({letter}) {run}: {'to do' if results.find(run) is None else 'done'}")
        return
    if not args.report:
        runner = Runner(args, size, results)
        for run in (run for claim in claims.values() for seed in seeds for run in claim.runs(size, seed)):
            if runner.time_is_over:
                break
            runner.run(run)
    print(json.dumps(report(args, size, seeds, results)))


if __name__ == "__main__":
    with exit_on_user_error(ValueError, OSError):
        main()
