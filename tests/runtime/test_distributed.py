"""The collectives: alone they change nothing; two processes agree."""

from __future__ import annotations

import re
import socket
from pathlib import Path

import pytest
import torch

from runtime import distributed
from runtime.cli import ProcessSettings, build_parser, exit_in_order
from runtime.errors import UserError
from runtime.rundir import new_run_dir
from tests.commands import succeed
from tests.ranks import free_port

LAUNCHER_VARIABLES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "GROUP_RANK", "MASTER_ADDR", "MASTER_PORT")


@pytest.fixture(autouse=True)
def _no_launcher(monkeypatch):
    for name in LAUNCHER_VARIABLES:
        monkeypatch.delenv(name, raising=False)


def test_alone_everything_is_what_it_was():
    env = distributed.initialize(device="cpu")
    assert (env.rank, env.world_size, env.backend, env.is_main, env.is_distributed) == (0, 1, "none", True, False)
    assert env.device == torch.device("cpu")
    value = torch.tensor([1.0, 2.0])
    assert distributed.all_reduce_sum_(value) is value
    assert distributed.all_reduce_mean_(value) is value
    assert distributed.broadcast_(value) is value
    assert distributed.gather_rows(value) == [value]
    assert distributed.gather_objects({"a": 1}) == [{"a": 1}]
    assert distributed.broadcast_object("x") == "x"
    assert distributed.run_on_main(lambda: 3) == 3
    distributed.barrier()
    distributed.shutdown()
    assert value.tolist() == [1.0, 2.0]
    assert (distributed.get_rank(), distributed.get_world_size(), distributed.is_main()) == (0, 1, True)


def test_an_error_on_main_stays_what_it_was_alone():
    def fail():
        raise FileNotFoundError("gone")

    with pytest.raises(FileNotFoundError, match="gone"):
        distributed.run_on_main(fail)


def test_a_mean_of_integers_is_our_mistake():
    with pytest.raises(AssertionError):
        distributed.all_reduce_mean_(torch.tensor([1]))


@pytest.mark.parametrize(
    ("variables", "settings", "message"),
    [
        ({}, {"backend": "mpi"}, "'mpi' is not one of auto, gloo, nccl"),
        ({}, {"device": "tpu"}, "'tpu' is not one of auto, cpu, cuda"),
        ({}, {"device": "cpu", "backend": "nccl"}, "needs a GPU"),
        ({}, {"device": "cpu", "world_size": 4}, "--world_size 4 contradicts the launcher, which says 1"),
        ({}, {"device": "cpu", "node_rank": 1}, "--node_rank 1 contradicts the launcher, which says 0"),
        ({"WORLD_SIZE": "two"}, {"device": "cpu"}, "WORLD_SIZE='two' is not a whole number"),
        ({"WORLD_SIZE": "2"}, {"device": "cpu"}, "RANK, MASTER_ADDR, MASTER_PORT is not set"),
        ({"LOCAL_RANK": "1000"}, {"device": "cuda"}, "process 1000 of this node needs GPU 1000"),
    ],
)
def test_wrong_settings_give_one_line(monkeypatch, variables, settings, message):
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match=message):
        distributed.initialize(**settings)


def test_the_published_default_of_world_size_means_the_launchers():
    assert distributed.initialize(device="cpu", world_size=-1, node_rank=-1, local_rank=0).world_size == 1


def use_every_collective(rank: int, folder: str) -> dict[str, object]:
    """One rank of two: what it saw."""
    env = distributed.initialize(timeout=60, device="cpu")
    seen = {
        "env": [env.rank, env.world_size, env.backend, env.is_main, env.is_distributed],
        "sum": distributed.all_reduce_sum_(torch.tensor([rank + 1, 10])).tolist(),
        "mean": distributed.all_reduce_mean_(torch.tensor([rank + 1.0])).tolist(),
        "broadcast": distributed.broadcast_(torch.tensor([rank + 5.0])).tolist(),
        "rows": [rows.tolist() for rows in distributed.gather_rows(torch.full((rank + 1, 2), float(rank)))],
        "objects": distributed.gather_objects({"rank": rank, "text": "ä" * (rank + 1)}),
        "one": distributed.broadcast_object(["from", rank], source=1),
        "main": distributed.run_on_main(lambda: distributed.get_rank()),
        "run_dir": str(new_run_dir(folder, "digits")),
    }
    # A view with gaps is reduced in place as well.
    table = torch.zeros(2, 3)
    distributed.all_reduce_sum_(table.t()[1].fill_(rank + 1.0))
    seen["view"] = table.tolist()
    try:
        distributed.run_on_main(lambda: 1 / 0)
    except (ZeroDivisionError, UserError) as error:
        seen["failure"] = f"{type(error).__name__}: {error}"
    distributed.barrier()
    return seen


def test_two_processes_agree(on_ranks, tmp_path):
    first, second = on_ranks(use_every_collective, str(tmp_path), join=False)
    assert first.pop("env") == [0, 2, "gloo", True, True]
    assert second.pop("env") == [1, 2, "gloo", False, True]
    assert first.pop("failure") == "ZeroDivisionError: division by zero"
    assert second.pop("failure") == "UserError: rank 0 failed: division by zero"
    assert first == second
    assert Path(first.pop("run_dir")).is_dir()
    assert first == {
        "sum": [3, 20],
        "mean": [1.5],
        "broadcast": [5.0],
        "rows": [[[0.0, 0.0]], [[1.0, 1.0], [1.0, 1.0]]],
        "objects": [{"rank": 0, "text": "ä"}, {"rank": 1, "text": "ää"}],
        "one": ["from", 1],
        "main": 0,
        "view": [[0.0, 3.0, 0.0], [0.0, 3.0, 0.0]],
    }


SCRIPT = """
import sys
from runtime import distributed
from runtime.cli import build_parser
from runtime.errors import exit_on_user_error
with exit_on_user_error():
    args = build_parser("A test.").parse_args()
    env = distributed.initialize(args.timeout, args.dist_backend, device="cpu", local_rank=args.local_rank,
                                 world_size=args.world_size, node_rank=args.node_rank)
    print(distributed.gather_objects([env.rank, env.local_rank, args.local_rank, args.overrides]))
    distributed.shutdown()
"""


@pytest.mark.filterwarnings("ignore")
def test_torch_distributed_launch_is_understood(tmp_path):
    (tmp_path / "script.py").write_text(SCRIPT)
    launcher = ["-m", "torch.distributed.launch", "--nproc_per_node=2", f"--master_port={free_port()}"]
    done = succeed(*launcher, tmp_path / "script.py", "a=1", "--world_size", 2)
    assert done.out.count("[[0, 0, 0, ['a=1']], [1, 1, 1, ['a=1']]]") == 2


@pytest.mark.parametrize(
    ("variables", "flags", "said"),
    [
        ({}, [], "rank 0 has not come: nothing answers rank 1 at 127.0.0.1:PORT (MASTER_ADDR:"),
        ({"RANK": "0"}, [], "1 of 2 processes have not come: rank 1; waited 1 s (--join-timeout) at 127.0.0.1:PORT"),
        ({"MASTER_ADDR": "no.such.host.invalid"}, [], "at no.such.host.invalid:PORT"),
        ({"RANK": "7"}, [], "RANK=7 must lie below WORLD_SIZE=2"),
        ({"MASTER_PORT": "99999"}, [], "=99999 must lie between 1 and 65535"),
        ({}, ["--join-timeout", "0"], "--join-timeout 0 must lie above 0 and below 1e+09 seconds"),
        ({}, ["--join-timeout", "nan"], "--join-timeout nan must lie above 0 and below 1e+09 seconds"),
        ({}, ["--timeout", "inf"], "--timeout inf must lie above 0 and below 1e+09 seconds"),
    ],
)
def test_what_cannot_be_met_is_one_line(variables, flags, said, monkeypatch):
    port = free_port()
    given = {"RANK": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), **variables}
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match=re.escape(said.replace("PORT", str(port)))) as told:
        ProcessSettings.from_flags(build_parser("test").parse_args(["--join-timeout", "1", *flags])).join()
    assert len(str(told.value)) < 300


def test_a_taken_port_is_named(monkeypatch):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        given = {"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
        for name, value in given.items():
            monkeypatch.setenv(name, value)
        with pytest.raises(UserError, match=f"^the port is taken by another program: 127.0.0.1:{port} "):
            distributed.initialize(device="cpu", join_timeout=2)


def test_a_program_that_takes_connections_and_is_silent_is_not_waited_for(monkeypatch):
    monkeypatch.setattr(distributed, "_ANSWER_SECONDS", 0.5)
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        given = {"RANK": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(other.getsockname()[1])}
        for name, value in given.items():
            monkeypatch.setenv(name, value)
        with pytest.raises(UserError, match="^what takes connections there is no process of this run"):
            distributed.initialize(device="cpu", join_timeout=1)


def test_a_rank_that_is_lost_later_is_one_line_in_every_script(capsys):
    with pytest.raises(SystemExit) as ended, exit_in_order():
        raise torch.distributed.DistBackendError("[gloo/transport] Connection closed by peer")
    assert ended.value.code == 1
    assert "another process of the run has ended" in capsys.readouterr().err
