"""Run under torchrun: trains every case of a JSON file and saves what each rank ends with.

`rank_driver.py CASES.json OUT`, where a case is {"name", "stage", "flags"}; rank r of case c writes the checkpoint
`OUT/c/rank<r>/step_*` of its own objects, and rank 0 the usual run directory under `OUT/c/runs`. A case with a
"stop" dies before that step and is resumed.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch

from runtime import distributed
from tests.training.tiny_runs import only_run, train, train_until
from training.checkpoint import save_checkpoint


def main(cases_file: str, out: str) -> None:
    torch.set_num_threads(1)
    env = distributed.initialize(timeout=60, device="cpu")
    distributed.initialize = lambda *args, **kwargs: env  # one group for all cases: a process can join only once
    try:
        for case in json.loads(Path(cases_file).read_text()):
            folder = Path(out) / case["name"]
            flags = [*case["flags"], "-r", folder / "runs"]
            if "stop" in case:
                train_until(case["stop"], case["stage"], *flags)
                flags = ["--resume", "-l", only_run(folder / "runs")]
            run = train(case["stage"], *flags)
            save_checkpoint(folder / f"rank{env.rank}", run.plan.total_steps, run.stage.objects())
    finally:
        distributed.shutdown()


if __name__ == "__main__":
    main(*sys.argv[1:])
