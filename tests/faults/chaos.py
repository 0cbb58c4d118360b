"""Disturbs training runs in every way at hand, at random, and shows that each ends as if nobody had.

    python -m tests.faults.chaos --minutes 30 [--seed 0] [--summary FILE] [--folder DIR]

Two to four ranks train stage 1 on scikit-learn's digits; each has a network of its own where the system allows it,
and their disk is a small one. A run suffers one to four of `chaos_run.FAULTS` after random steps, and some change the
number of ranks on the way; it is started again until its last step is saved. A run whose number of ranks stayed must
end with the weights, codebook, averages, optimizer, progress and `metrics.jsonl` of an undisturbed one, bit for bit.
One that changed it must have every line once, with losses that leave the undisturbed curve by at most `DEVIATION`. The
last line is the summary as JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import sys
import tempfile
import time
from collections import Counter
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from runtime.records.metrics_file import METRICS_FILE, read_metrics
from tests.faults import chaos_network
from tests.faults.chaos_run import FAULTS, HANG_SECONDS, SIZES, Run, World, wait_for
from tests.faults.kill_runs import compare, write_digits
from tests.training.tiny_runs import stage1, write_config

STEPS, SAVE_STEPS = 60, 4
GLOBAL_BATCH = 12
DISK_MEGABYTES = 48
MOST_FAULTS = 4
RESIZED = 0.3  # of the runs
DEVIATION = 1e-3  # relative, of a loss
LOSS = "train/loss_total"


@dataclass
class Episode:
    """One disturbed run: what was done to it, and how it ended."""

    number: int
    sizes: list[int]
    faults: list[str] = field(default_factory=list)
    launches: int = 0
    exit_codes: dict[int, int] = field(default_factory=dict)
    counts: dict[str, int] = field(default_factory=dict)
    identical: dict[str, bool] | None = None
    deviation: float | None = None
    tracebacks: int = 0
    seconds: float = 0.0


def config_at(folder: Path) -> Path:
    """The run: data workers, accumulation, averages, checkpoints in the background every few steps."""
    write_digits(folder / "digits", {"train": 96, "val": 8})
    return write_config(
        folder / "chaos.yaml",
        stage1(
            {
                "dataset": {
                    "type": "folder",
                    "root": str(folder / "digits"),
                    "resolution": 8,
                    "hflip": True,
                    "max_corrupt": 0,  # an image that cannot be read would be replaced
                },
                "arch.ema": 0.9,
                "experiment.batch_size": 1,
                "experiment.total_batch_size": GLOBAL_BATCH,
                "experiment.max_steps": STEPS,
                "experiment.save_steps": SAVE_STEPS,
                "experiment.test_steps": STEPS // 3,
                "experiment.num_workers": 1,
                "experiment.signal_steps": 2,
                "experiment.hang_timeout": HANG_SECONDS,
            }
        ),
    )


class Chaos:
    """All runs of one seed.

    Args:
        folder: for everything; on its own disk where that can be.
    """

    def __init__(self, folder: Path, seed: int) -> None:
        disk = network = None
        results = folder / "results"
        results.mkdir()
        if chaos_network.is_inside():
            chaos_network.mount_small_disk(str(results), DISK_MEGABYTES)
            disk, network = results, chaos_network.Network(max(SIZES))
        config = config_at(folder)
        self.world = World(config, folder / "digits", disk, network)
        self.folder, self.results, self.seed = folder, results, seed
        usable = {
            name: weight for name, (weight, _) in FAULTS.items() if disk or name not in ("disk full", "network cut")
        }
        self.names, self.weights = list(usable), list(usable.values())
        self.straight = {ranks: self._undisturbed(ranks) for ranks in SIZES}
        pairs = [(one, other) for one in SIZES for other in SIZES if one < other]
        self.natural = max(deviation(self.straight[one], self.straight[other]) for one, other in pairs)

    def _undisturbed(self, ranks: int) -> Path:
        run = Run(self.world, self.folder / f"straight{ranks}", self.folder / f"said{ranks}", STEPS)
        run.launch(ranks, 0)
        run.launcher.join()
        assert run.is_done(), run.printed()[-3000:]
        return run.last()

    def episode(self, number: int) -> Episode:
        """One run from its start to its comparison."""
        draw, begun = random.Random(f"{self.seed} {number}"), time.monotonic()
        size = draw.choice(SIZES)
        run = Run(self.world, self.results / f"{number:03d}", self.folder / f"said-{number:03d}", STEPS)
        faults = draw.choices(self.names, self.weights, k=draw.randint(1, MOST_FAULTS))
        steps = sorted(draw.randrange(0, STEPS - 2) for _ in faults)
        resized_at = draw.randrange(len(faults)) if draw.random() < RESIZED else None
        episode = Episode(number, [size])
        try:
            run.launch(size)
            for place, (name, step) in enumerate(zip(faults, steps)):
                self._bring_to(run, size, step)
                if run.is_done():
                    break
                time.sleep(draw.uniform(0.0, 0.3))
                if run.ranks:
                    episode.faults.append(f"step {run.step()}: {FAULTS[name][1](run, draw)}")
                    run.counts[name] += 1
                if place == resized_at:
                    size = self._resize(run, size, draw)
                    episode.faults.append(f"step {run.step()}: {size} ranks from here on")
                    episode.sizes.append(size)
            self._bring_to(run, size, STEPS + 1)
            self._judge(run, episode)
        finally:
            run.kill_all()
        episode.seconds = round(time.monotonic() - begun, 1)
        shutil.rmtree(self.results / f"{number:03d}")
        return episode

    def _bring_to(self, run: Run, size: int, step: int) -> None:
        """Until a step is logged, or the run is done, starting it again as often as it ends before."""
        while not run.wait_for_step(step) and not run.is_done():
            run.launch(size)

    def _resize(self, run: Run, size: int, draw: random.Random) -> int:
        run.kill_all()
        size = draw.choice([other for other in SIZES if other != size])
        run.launch(size)
        return size

    def _judge(self, run: Run, episode: Episode) -> None:
        wait_for(lambda: not run.launcher.is_alive())
        printed = run.printed()
        episode.launches, episode.tracebacks = len(run.places), printed.count("Traceback")
        episode.exit_codes, episode.counts = dict(sorted(run.exit_codes().items())), dict(sorted(run.counts.items()))
        straight = self.straight[episode.sizes[0]]
        if len(set(episode.sizes)) == 1:
            episode.identical = compare(straight, run.last(), STEPS)
        else:
            episode.deviation = deviation(straight, run.last())
        if not self.is_good(episode) or episode.tracebacks:
            kept = self.folder / f"failed-{episode.number:03d}"
            shutil.copytree(run.folder, kept, ignore=shutil.ignore_patterns("tensorboard"))
            (kept / "printed").write_text(printed)

    def is_good(self, episode: Episode) -> bool:
        """Whether a run ended as it must."""
        if episode.identical is not None:
            return all(episode.identical.values())
        return episode.deviation is not None and episode.deviation <= DEVIATION

    def summary(self, episodes: list[Episode], minutes: float) -> dict[str, Any]:
        """The last line: counts, and every run."""
        same = [episode for episode in episodes if episode.identical is not None]
        left = [episode.deviation for episode in episodes if episode.deviation is not None]
        counts, codes = Counter[str](), Counter[int]()
        for episode in episodes:
            counts.update(episode.counts)
            codes.update(episode.exit_codes)
        return {
            "minutes": round(minutes, 1),
            "seed": self.seed,
            "runs": len(episodes),
            "good": sum(map(self.is_good, episodes)),
            "same_number_of_ranks": {"runs": len(same), "identical": sum(map(self.is_good, same))},
            "other_numbers_of_ranks": {
                "runs": len(left),
                "largest_deviation": max(left, default=None),
                "undisturbed_deviation": self.natural,
                "allowed": DEVIATION,
            },
            "faults": {name: counts[name] for name in self.names},
            "also": {name: count for name, count in sorted(counts.items()) if name not in FAULTS},
            "launches": sum(episode.launches for episode in episodes),
            "exit_codes_of_ranks": dict(sorted(codes.items())),
            "tracebacks": sum(episode.tracebacks for episode in episodes),
            "own_networks_and_disk": self.world.network is not None,
            "steps": STEPS,
            "save_steps": SAVE_STEPS,
            "torch": torch.__version__,
            "episodes": [asdict(episode) for episode in episodes],
        }


def deviation(straight: Path, other: Path) -> float:
    """The largest relative difference of two runs' losses, step by step; inf where they have not the same lines."""
    curves = []
    for run in (straight, other):
        lines = [line for line in read_metrics(run / METRICS_FILE) if LOSS in line]
        curves.append({line["step"]: line[LOSS] for line in lines})
        if len(lines) != len(curves[-1]):
            return float("inf")
    if curves[0].keys() != curves[1].keys():
        return float("inf")
    return max(abs(curves[1][step] - loss) / abs(loss) for step, loss in curves[0].items())


def describe(episode: Episode, good: bool) -> str:
    """One line of the report."""
    if episode.identical is None:
        end = f"leaves the curve by {episode.deviation:.2%}"
    else:
        wrong = [part for part, equal in episode.identical.items() if not equal]
        end = "identical" if not wrong else "DIFFERS in " + ", ".join(wrong)
    sizes = ">".join(map(str, episode.sizes))
    return (
        f"{episode.number:3d} {'good' if good else 'BAD '} {sizes:6s} ranks, {episode.launches} launches, "
        f"{episode.seconds:5.1f} s, {end}: {'; '.join(episode.faults)}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--first", type=int, default=0, help="number of the first run, to take one again")
    parser.add_argument("--summary", type=Path, help="write the JSON line there as well")
    parser.add_argument("--folder", type=Path, help="kept afterwards, with what went wrong; default: a temporary one")
    args = parser.parse_args()
    os.environ["CUDA_VISIBLE_DEVICES"] = ""  # bit for bit is promised on the CPU
    if not chaos_network.is_inside() and chaos_network.can_enter():
        chaos_network.enter("tests.faults.chaos", sys.argv[1:])
    folder = args.folder or Path(tempfile.mkdtemp(prefix="chaos-"))
    folder.mkdir(parents=True, exist_ok=True)
    begun = time.monotonic()
    chaos, episodes, line = Chaos(folder, args.seed), [], ""
    while not episodes or time.monotonic() - begun < 60 * args.minutes:
        episode = chaos.episode(args.first + len(episodes))
        episodes.append(episode)
        print(describe(episode, chaos.is_good(episode)), flush=True)
        line = json.dumps(chaos.summary(episodes, (time.monotonic() - begun) / 60))
        if args.summary is not None:
            args.summary.write_text(line + "\n")
    print(line)
    if args.folder is None:
        shutil.rmtree(folder, ignore_errors=True)
    if not all(map(chaos.is_good, episodes)):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
