"""Checkpoints written and read by several processes (gloo): shards, replicas, other numbers of ranks, failures."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from runtime import distributed
from runtime.atomic import sha256_of_file
from runtime.errors import UserError
from tests.training.checkpoint_files import load_checkpoint, save_checkpoint
from training.checkpoints import checkpoint_directories, checkpoint_storage
from training.checkpoints.checkpoint_directories import complete_checkpoints, find_sound_checkpoint
from training.checkpoints.checkpoint_restoring import restore_checkpoint
from training.checkpoints.checkpoint_writer import CheckpointWriter
from training.checkpoints.state_tree import encode, is_sharded
from training.optimization.optimizer import allocate_optimizer_state

QUIET = {"report": lambda line: None}


class Run:
    """A network whose parameters do not divide evenly, with codebook-like buffers and an optimizer that has moments."""

    def __init__(self, sharded: bool, seed: int = 0) -> None:
        torch.manual_seed(seed)
        self.model = nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 1))
        self.model.register_buffer("codes", torch.randn(4, 3))
        self.model.register_buffer("count", torch.tensor(7 + seed))
        self.model.register_buffer("used", torch.tensor([True, False, seed == 0]))
        self.model.register_buffer("nothing", torch.zeros(0, 3))
        if sharded:
            fully_shard(self.model, mesh=init_device_mesh("cpu", (distributed.get_world_size(),)))
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=0.1)

    def step(self, number: int) -> None:
        """An optimizer step that is the same however the parameters are held, from gradients that are given."""
        for index, parameter in enumerate(self.model.parameters()):
            whole = torch.sin(torch.arange(parameter.numel()).view(parameter.shape) + 10 * index + number)
            parameter.grad = parameter.detach().clone()
            local = parameter.grad.to_local() if hasattr(parameter, "to_local") else parameter.grad
            # rows are cut into ceil(rows / ranks) per rank, as torch.chunk does
            mine = whole.chunk(distributed.get_world_size()) if local is not parameter.grad else [whole]
            rank = distributed.get_rank() if local is not parameter.grad else 0
            local.copy_(mine[rank] if rank < len(mine) else whole[:0])
        self.optimizer.step()

    def allocate_state(self) -> None:
        allocate_optimizer_state(self.optimizer)

    def state_dict(self) -> dict:
        return {"optimizer": self.optimizer.state_dict(), "skipped": 3}

    def load_state_dict(self, state: dict) -> None:
        assert state["skipped"] == 3
        self.optimizer.load_state_dict(state["optimizer"])

    @property
    def objects(self) -> dict:
        return {"model": self.model, "update": self}

    def tensors(self) -> dict[str, Tensor]:
        """Everything, whole; collective where it is sharded."""
        states = {"model": self.model.state_dict(), "update": self.state_dict()}
        return {name: tensor.clone() for name, tensor in encode(_whole(states))[1].items()}


def _whole(value):
    if isinstance(value, Tensor):
        return value.full_tensor() if hasattr(value, "full_tensor") else value
    return {key: _whole(item) for key, item in value.items()} if isinstance(value, dict) else value


def trained() -> Run:
    run = Run(sharded=False)
    run.step(1)
    run.step(2)
    return run


def assert_is_trained(tensors: dict[str, Tensor]) -> None:
    expected = trained().tensors()
    assert tensors.keys() == expected.keys()
    for name, tensor in expected.items():
        assert tensors[name].dtype == tensor.dtype, name
        assert torch.equal(tensors[name], tensor), name


def save_trained(rank: int, folder: str, sharded: bool) -> None:
    run = Run(sharded)
    run.step(1)
    run.step(2)
    with CheckpointWriter(Path(folder) / "checkpoints") as writer:
        writer.save(2, run.objects, {"images_seen": 16})
        run.step(3)  # training goes on; what was saved must not notice
        writer.check()


def load_into_fresh(rank: int, folder: str, sharded: bool) -> None:
    run = Run(sharded, seed=5)
    found = find_sound_checkpoint(folder, **QUIET)
    assert restore_checkpoint(found, run.objects, verify=False) == {"images_seen": 16, "step": 2}
    assert_is_trained(run.tensors())
    moments = [entry["exp_avg"] for entry in run.optimizer.state.values()]
    assert [is_sharded(moment) for moment in moments] == [sharded] * len(moments), "a rank reads its shards only"


@pytest.mark.parametrize("sharded", [True, False])
def test_what_two_ranks_wrote_is_read_by_any_number_sharded_or_not(on_ranks, sharded, tmp_path):
    on_ranks(save_trained, str(tmp_path), sharded)
    (path,) = complete_checkpoints(tmp_path)
    files = [load_file(path / f"rank_0000{rank}.safetensors") for rank in (0, 1)]
    moments = [f"update/optimizer.state.{index}.{name}" for index in (0, 1) for name in ("exp_avg", "exp_avg_sq")]
    shards = {"model/0.weight", "model/0.bias", *moments} if sharded else set()  # the other layer has one row
    assert files[0].keys() & files[1].keys() == shards
    assert all((len(files[0][name]), len(files[1][name])) == (3, 2) for name in shards)
    load_into_fresh(0, str(tmp_path), False)
    loaded = load_checkpoint(tmp_path)
    assert_is_trained(encode({"model": loaded["model"], "update": loaded["update"]})[1])
    on_ranks(load_into_fresh, str(tmp_path), not sharded)


@pytest.mark.slow
@pytest.mark.parametrize("number", [2, 3, 4])
def test_more_ranks_than_wrote_it(on_ranks, number, tmp_path):
    on_ranks(save_trained, str(tmp_path), True)
    on_ranks(load_into_fresh, str(tmp_path), True, number=number)
    on_ranks(load_into_fresh, str(tmp_path), False, number=number)


def save_replicas(rank: int, folder: str) -> None:
    large = {f"large{index}": torch.full((10, 10), 1.0) for index in range(3)}
    statistics = torch.full((100,), float(rank))
    save_checkpoint(Path(folder) / "checkpoints", 1, {"x": {**large, "statistics": statistics}})


def test_replicas_are_spread_over_ranks_and_statistics_are_those_of_rank_0(on_ranks, tmp_path):
    on_ranks(save_replicas, str(tmp_path))
    path = tmp_path / "checkpoints" / "step_00000001"
    names = [set(load_file(path / f"rank_0000{rank}.safetensors")) for rank in (0, 1)]
    assert names[0] & names[1] == set()
    assert [len([name for name in part if "large" in name]) for part in names] == [2, 1]
    assert load_checkpoint(path)["x"]["statistics"].eq(0).all()


def fail_on_rank_1(rank: int, folder: str, asynchronous: bool) -> None:
    state = {"x": {"value": torch.ones(10, 10), "other": torch.ones(10, 10), "small": torch.ones(3)}}
    said = []
    with pytest.raises(UserError) as raised, CheckpointWriter(Path(folder), asynchronous=asynchronous) as writer:
        writer.save(1, state)
        writer.wait()
        if rank == 1:
            checkpoint_storage.save_file = _full_disk
        writer.save(2, state)
        for _ in range(100_000):
            said.append(distributed.gather_objects(0))  # a step: both ranks must be told at the same one
            writer.check()
    steps = distributed.gather_objects(len(said))
    assert steps[0] == steps[1] and (not asynchronous or steps[0] > 0)
    Path(folder, f"said{rank}").write_text(str(raised.value))


def _full_disk(tensors: object, path: object) -> None:
    raise OSError(28, "No space left on device")


@pytest.mark.parametrize("asynchronous", [True, False])
def test_a_full_disk_of_one_rank_ends_all_at_the_same_step(on_ranks, asynchronous, tmp_path):
    on_ranks(fail_on_rank_1, str(tmp_path), asynchronous)
    for rank in (0, 1):
        line = (tmp_path / f"said{rank}").read_text()
        assert line.startswith(f"cannot write {tmp_path}/step_00000002: rank 1: ") and "No space left" in line
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["said0", "said1", "step_00000001"]


def find_among_damaged(rank: int, folder: str) -> None:
    hashed: list[str] = []
    said: list[str] = []
    original = checkpoint_directories.sha256_of_file
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(checkpoint_directories, "sha256_of_file", lambda path: hashed.append(path.name) or original(path))
        found = find_sound_checkpoint(folder, said.append)
    Path(folder, f"found{rank}").write_text(json.dumps([found.name, len(hashed), said]))


def test_ranks_share_the_hashing_and_agree_on_the_checkpoint(on_ranks, tmp_path):
    for step in (1, 2):
        save_checkpoint(tmp_path / "checkpoints", step, {"x": {"value": torch.tensor(step)}})
    with open(tmp_path / "checkpoints/step_00000002/rank_00000.safetensors", "r+b") as file:
        file.write(b"\x01")
    on_ranks(find_among_damaged, str(tmp_path))
    found = [json.loads((tmp_path / f"found{rank}").read_text()) for rank in (0, 1)]
    assert [entry[0] for entry in found] == ["step_00000001"] * 2
    assert found[0][2] == found[1][2] and "rank_00000.safetensors" in found[0][2][0]
    assert sum(entry[1] for entry in found) <= 6, "three files of each, every one hashed by one rank"


def first_format(directory: Path) -> None:
    """The trained state as the first version wrote it: one file per object."""
    directory.mkdir(parents=True)
    run, trees = trained(), {}
    for name, state in (("model", run.model.state_dict()), ("update", run.state_dict())):
        trees[name], tensors = encode(state)
        save_file(tensors, directory / f"{name}.safetensors")
    (directory / "state.json").write_text(json.dumps({"step": 2, "meta": {"images_seen": 16}, "objects": trees}))
    files = {file.name: {"sha256": sha256_of_file(file), "bytes": file.stat().st_size} for file in directory.iterdir()}
    (directory / "manifest.json").write_text(json.dumps({"format": 1, "files": files}))
    (directory / "COMPLETE").touch()


def test_the_first_format_is_read_whole_and_sharded(on_ranks, tmp_path):
    first_format(tmp_path / "checkpoints" / "step_00000002")
    load_into_fresh(0, str(tmp_path), False)
    on_ranks(load_into_fresh, str(tmp_path), True)
