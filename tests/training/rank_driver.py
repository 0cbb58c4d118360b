"""Run under torchrun: trains every case of a JSON file and saves what each rank ends with.

`rank_driver.py CASES.json OUT`, where a case is {"name", "stage", "flags"}; rank r of case c writes the tensors of its
own objects as `OUT/c/rank<r>.safetensors`, and rank 0 the usual run directory under `OUT/c/runs`. A case with a
"stop" dies before that step and is resumed.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch
from safetensors.torch import save_file

from runtime import distributed
from tests.training.tiny_runs import only_run, train, train_until
from training.checkpoints.state_tree import encode


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
            states = {name: encode(item.state_dict())[1] for name, item in run.stage.objects().items()}
            tensors = {f"{name}/{key}": tensor for name, part in states.items() for key, tensor in part.items()}
            save_file(tensors, folder / f"rank{env.rank}.safetensors")
    finally:
        distributed.shutdown()


if __name__ == "__main__":
    main(*sys.argv[1:])
