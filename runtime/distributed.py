"""The processes of a run: finding out about them, and the collectives between them.

Every function is safe in a single process without a group: reductions and broadcasts then change nothing.
"""

from __future__ import annotations

import gc
import json
import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from threading import Thread
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed import HashStore, TCPStore  # type: ignore[attr-defined]  # stubs do not say they export them
from torch.distributed.distributed_c10d import PrefixStore, _get_default_store

from runtime.errors import UserError, one_line
from runtime.rounds import BACKENDS, DEFAULT_JOIN_SECONDS, DEFAULT_TIMEOUT_SECONDS, agree_on_round, check_waits

DEVICES = ("auto", "cpu", "cuda")
_ANSWER_SECONDS = 2.0
_LOST_RANK = re.compile(r"gloo.*(Connection (closed|reset)|Timed out|Broken pipe|not connected)|NCCL", re.DOTALL)


@dataclass(frozen=True)
class DistEnv:
    """Who this process is. `backend` is `none` when it is alone."""

    rank: int
    world_size: int
    local_rank: int
    device: torch.device
    backend: str

    @property
    def is_main(self) -> bool:
        return self.rank == 0

    @property
    def is_distributed(self) -> bool:
        return self.world_size > 1


def initialize(
    timeout: float = DEFAULT_TIMEOUT_SECONDS,
    backend: str = "auto",
    *,
    join_timeout: float = DEFAULT_JOIN_SECONDS,
    device: str = "auto",
    local_rank: int | None = None,
    world_size: int | None = None,
    node_rank: int | None = None,
) -> DistEnv:
    """Join the process group the launcher describes in the environment; without a launcher, be alone.

    Args:
        timeout: seconds after which a collective that waits for another rank fails.
        backend: `auto` is nccl on CUDA and gloo on CPU.
        join_timeout: seconds after which this one fails, if other processes have not come.
        device: `auto` is CUDA where there is one.
        local_rank: from the command line (`torch.distributed.launch`); the environment has precedence.
        world_size, node_rank: from the command line; only compared with what the launcher says.

    Raises:
        UserError: unknown backend or device, too few GPUs, a flag that contradicts the launcher, or processes that
            cannot be met; it names the address, and who is missing.
    """
    _check_choice("--dist-backend", backend, BACKENDS)
    _check_choice("device", device, DEVICES)
    env_world_size = _env_int("WORLD_SIZE", 1)
    env_rank = _env_int("RANK", 0)
    env_local_rank = _env_int("LOCAL_RANK", local_rank if local_rank is not None else 0)
    _check_flag("--world_size", world_size, env_world_size)
    _check_flag("--node_rank", node_rank, _env_int("GROUP_RANK", 0))
    torch_device = _pick_device(device, env_local_rank)
    backend = _pick_backend(backend, torch_device)
    if env_world_size == 1:
        return DistEnv(0, 1, env_local_rank, torch_device, "none")
    _join_group(backend, env_rank, env_world_size, timeout, join_timeout, torch_device)
    return DistEnv(env_rank, env_world_size, env_local_rank, torch_device, backend)


def shutdown() -> None:
    """Leave the process group, if there is one, and wait until its threads have ended.

    They end with the last reference to the group, which a data-parallel model in a cycle may hold. A thread that still
    frees a tensor while the interpreter shuts down aborts the process.
    """
    if _has_group():
        gc.collect()
        dist.destroy_process_group()


def get_rank() -> int:
    return dist.get_rank() if _has_group() else 0


def get_world_size() -> int:
    return dist.get_world_size() if _has_group() else 1


def is_main() -> bool:
    return get_rank() == 0


def barrier() -> None:
    """Wait until every rank is here."""
    if not _has_group():
        return
    # With NCCL a barrier without a device guesses one, and can guess wrong.
    ids = [torch.cuda.current_device()] if dist.get_backend() == "nccl" else None
    dist.barrier(device_ids=ids)


def all_reduce_sum_(tensor: Tensor) -> Tensor:
    """Replace `tensor` by its sum over ranks, in place, on any device."""
    if get_world_size() > 1:
        shared = _on_group_device(tensor)
        dist.all_reduce(shared)
        _copy_back(tensor, shared)
    return tensor


def all_reduce_mean_(tensor: Tensor) -> Tensor:
    """Replace a floating-point `tensor` by its mean over ranks, in place."""
    assert tensor.is_floating_point(), "a mean over ranks needs a floating-point tensor"
    world_size = get_world_size()
    return all_reduce_sum_(tensor).div_(world_size) if world_size > 1 else tensor


def broadcast_(tensor: Tensor, source: int = 0) -> Tensor:
    """Replace `tensor` by rank `source`'s, in place."""
    if get_world_size() > 1:
        shared = _on_group_device(tensor)
        dist.broadcast(shared, src=source)
        _copy_back(tensor, shared)
    return tensor


def gather_rows(tensor: Tensor) -> list[Tensor]:
    """Every rank's `tensor`, by rank, on every rank. The number of rows (first dim) may differ between ranks."""
    if get_world_size() == 1:
        return [tensor]
    counts = _gather_counts(len(tensor), tensor)
    shared = _on_group_device(tensor)
    padded = shared.new_zeros(max(counts), *shared.shape[1:])
    padded[: len(shared)] = shared
    gathered = [torch.empty_like(padded) for _ in counts]
    dist.all_gather(gathered, padded)
    return [rows[:count].to(tensor.device) for rows, count in zip(gathered, counts)]


def gather_objects(value: Any) -> list[Any]:
    """Every rank's `value`, by rank, on every rank. Values are what JSON can hold: nothing is pickled."""
    if get_world_size() == 1:
        return [value]
    encoded = torch.frombuffer(bytearray(json.dumps(value).encode("utf-8")), dtype=torch.uint8)
    return [json.loads(bytes(rows.tolist())) for rows in gather_rows(encoded)]


def broadcast_object(value: Any, source: int = 0) -> Any:
    """Rank `source`'s `value` (what JSON can hold) on every rank."""
    return gather_objects(value if get_rank() == source else None)[source]


def run_on_main(function: Callable[[], Any]) -> Any:
    """Run `function` on rank 0 alone and give its result (what JSON can hold) to every rank.

    The other ranks wait. A failure on rank 0 becomes a failure on all: nobody is left waiting for a rank that stopped.
    """
    failure, result, error = None, None, None
    if is_main():
        try:
            result = function()
        except Exception as caught:
            error, failure = caught, one_line(caught)
    failure, result = broadcast_object([failure, result])
    if error is not None:
        raise error
    if failure is not None:
        raise UserError(f"rank 0 failed: {failure}")
    return result


def new_host_group() -> Any:
    """A gloo group of all ranks, for the collectives of another thread; None in a single process.

    Every rank must ask for it at the same point. It ends with `shutdown`.
    """
    return dist.new_group(backend="gloo") if get_world_size() > 1 else None


class HostAgreement:
    """Yes-or-no questions to all ranks, answered on the hosts: no GPU is waited for.

    Under NCCL it has a gloo group of its own, so that every rank must make it, and ask, at the same point.
    """

    def __init__(self) -> None:
        needs_group = _has_group() and dist.get_backend() != "gloo"
        self._group: Any = dist.new_group(backend="gloo") if needs_group else None

    def any(self, answer: bool) -> bool:
        """Whether any rank says yes."""
        if get_world_size() == 1:
            return answer
        votes = torch.tensor([int(answer)])
        dist.all_reduce(votes, group=self._group)
        return bool(votes.item())


class Board:
    """Short texts that every process of the run can read, without any other process taking part.

    They lie in the store of the process group, read over a connection of its own: a thread may use it while the main
    thread waits in a collective. A single process without a group keeps them itself.
    """

    def __init__(self, name: str) -> None:
        shared = _get_default_store().clone() if _has_group() else HashStore()
        self._store = PrefixStore(name, shared)

    def write(self, key: str, text: str) -> None:
        self._store.set(key, text)

    def write_first(self, key: str, text: str) -> str:
        """Writes `text` unless there is one already; what is there then."""
        return self._store.compare_set(key, "", text).decode("utf-8")

    def read(self, keys: list[str]) -> list[str | None]:
        """The texts of `keys`, None where there is none yet."""
        if self._store.check(keys):
            return [text.decode("utf-8") for text in self._store.multi_get(keys)]
        return [self._store.get(key).decode("utf-8") if self._store.check([key]) else None for key in keys]


def lost_a_rank(error: RuntimeError) -> bool:
    """Whether a collective failed because another process ended or did not come, which is not this one's fault."""
    if isinstance(error, dist.DistError):
        return True
    return get_world_size() > 1 and bool(_LOST_RANK.search(str(error)))


def _has_group() -> bool:
    return dist.is_available() and dist.is_initialized()


def _check_choice(name: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise UserError(f"{name} {value!r} is not one of {', '.join(choices)}")


def _check_flag(name: str, value: int | None, actual: int) -> None:
    # The published scripts default to -1, "take it from the launcher".
    if value is not None and value >= 0 and value != actual:
        raise UserError(f"{name} {value} contradicts the launcher, which says {actual}; start with torchrun")


def _env_int(name: str, default: int) -> int:
    text = os.environ.get(name)
    if text is None:
        return default
    if not text.isdecimal():
        raise UserError(f"environment variable {name}={text!r} is not a whole number")
    return int(text)


def _pick_device(device: str, local_rank: int) -> torch.device:
    if device == "cpu" or (device == "auto" and not torch.cuda.is_available()):
        return torch.device("cpu")
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if local_rank >= count:
        raise UserError(f"process {local_rank} of this node needs GPU {local_rank}, but there are {count}")
    torch.cuda.set_device(local_rank)
    return torch.device("cuda", local_rank)


def _pick_backend(backend: str, device: torch.device) -> str:
    if backend == "auto":
        return "nccl" if device.type == "cuda" else "gloo"
    if backend == "nccl" and device.type != "cuda":
        raise UserError("--dist-backend nccl needs a GPU; use gloo or auto")
    return backend


def _join_group(
    backend: str, rank: int, world_size: int, timeout: float, join_timeout: float, device: torch.device
) -> None:
    missing = [name for name in ("RANK", "MASTER_ADDR", "MASTER_PORT") if name not in os.environ]
    if missing:
        raise UserError(f"WORLD_SIZE is {world_size} but {', '.join(missing)} is not set; start with torchrun")
    port = _env_int("MASTER_PORT", 0)
    if rank >= world_size:
        raise UserError(f"RANK={rank} must lie below WORLD_SIZE={world_size}")
    if not 0 < port < 65536:
        raise UserError(f"MASTER_PORT={port} must lie between 1 and 65535")
    check_waits(timeout, join_timeout)
    with _named_place(rank, join_timeout):
        store: Any = _open_store(os.environ["MASTER_ADDR"], port, rank, join_timeout)
        store = PrefixStore(agree_on_round(store, rank, world_size, join_timeout), store)
        dist.init_process_group(
            backend,
            store=store,
            rank=rank,
            world_size=world_size,
            timeout=timedelta(seconds=timeout),
            device_id=device if backend == "nccl" else None,
        )


def _open_store(host: str, port: int, rank: int, timeout: float) -> Any:
    """The store that all processes share: torchrun's, else rank 0's."""
    serves = rank == 0 and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True"
    opened: list[Any] = []

    def open_it() -> None:
        try:
            limit = timedelta(seconds=timeout)
            opened.append(TCPStore(host, port, None, serves, limit, wait_for_workers=False, multi_tenant=True))
        except Exception as error:
            opened.append(error)

    # a program that takes connections and never answers would be waited for without a limit
    thread = Thread(target=open_it, name="join", daemon=True)
    thread.start()
    thread.join(timeout + _ANSWER_SECONDS)
    if not opened:
        raise TimeoutError("what takes connections there is no process of this run: it does not answer")
    if isinstance(opened[0], Exception):
        raise opened[0]
    return opened[0]


@contextmanager
def _named_place(rank: int, join_timeout: float) -> Iterator[None]:
    """Makes a line with the address of what goes wrong while processes meet."""
    address = f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']} (MASTER_ADDR:MASTER_PORT)"
    try:
        yield
    except TimeoutError as error:
        raise UserError(f"{one_line(error)}; waited {join_timeout:g} s (--join-timeout) at {address}") from error
    except (dist.DistError, RuntimeError) as error:
        text = one_line(error)
        if "EADDRINUSE" in text or "address already in use" in text.lower():
            raise UserError(f"the port is taken by another program: {address}; choose another MASTER_PORT") from error
        if "timed out" in text.lower() and rank > 0:
            raise UserError(
                f"rank 0 has not come: nothing answers rank {rank} at {address}; waited {join_timeout:g} s "
                "(--join-timeout)"
            ) from error
        raise UserError(f"cannot meet the other processes at {address}: {text[:140]}") from error


def _on_group_device(tensor: Tensor) -> Tensor:
    if dist.get_backend() == "nccl" and tensor.device.type != "cuda":
        return tensor.to(torch.device("cuda", torch.cuda.current_device()))
    return tensor.contiguous()


def _copy_back(tensor: Tensor, shared: Tensor) -> None:
    if shared is not tensor:
        tensor.copy_(shared)


def _gather_counts(count: int, like: Tensor) -> list[int]:
    counts = torch.zeros(get_world_size(), dtype=torch.int64, device=like.device)
    counts[get_rank()] = count
    return all_reduce_sum_(counts).tolist()
