"""`kill -9` of a process that does nothing but write checkpoints: what is left is always whole."""

from __future__ import annotations

import random
import time

import pytest

from tests.commands import start
from tests.training.checkpoint_files import load_checkpoint
from training.checkpoints.checkpoint_directories import complete_checkpoints, find_sound_checkpoint

WRITER = """
import itertools, sys, torch
from tests.training.checkpoint_files import save_checkpoint
for step in itertools.count(int(sys.argv[2]) + 1):
    state = {"value": torch.full((500_000,), float(step)), "step": step}
    save_checkpoint(sys.argv[1], step, {"model": state, "optimizer": state}, keep_last=2)
    print(step, flush=True)
"""


@pytest.mark.slow
def test_every_kill_leaves_a_sound_checkpoint(tmp_path):
    directory = tmp_path / "checkpoints"
    moment = random.Random(0)
    done = 0
    for _ in range(8):
        writer = start("-c", WRITER, directory, done)
        first = int(writer.stdout.readline())
        time.sleep(moment.uniform(0.0, 0.2))
        writer.kill()
        reported = [first, *map(int, writer.stdout.read().split())]
        writer.wait()
        found = find_sound_checkpoint(directory, report=lambda line: None)
        loaded = load_checkpoint(found)
        # The rename may have been done and the report not yet.
        assert loaded["step"] in (reported[-1], reported[-1] + 1)
        assert loaded["model"]["value"].eq(loaded["step"]).all()
        assert loaded["optimizer"]["step"] == loaded["step"]
        assert all(load_checkpoint(path)["step"] for path in complete_checkpoints(directory))
        assert reported[0] == done + 1
        done = loaded["step"]
