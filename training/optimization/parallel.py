"""Data parallelism: every process a whole copy (DDP), or every process a share of each parameter (FSDP2).

Nothing outside this file knows which of the two is at work: parameters, gradients, moments and averages are then
`DTensor`s under the same names, and the functions below take either.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from inspect import signature
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor, Replicate, Shard
from torch.futures import Future
from torch.nn.parallel import DistributedDataParallel

from runtime.distributed import DistEnv, all_reduce_sum_, broadcast_, gather_rows, get_world_size

PARALLEL = ("ddp", "fsdp", "none")
# Whether every forward broadcasts rank 0's buffers; renamed in torch 2.15, which warns at the older name.
_DDP_PARAMETERS = signature(DistributedDataParallel).parameters
_FORWARD_BUFFER_FLAG = "forward_sync_buffers" if "forward_sync_buffers" in _DDP_PARAMETERS else "broadcast_buffers"
_KEEP_BUFFERS: dict[str, Any] = {_FORWARD_BUFFER_FLAG: False}
Model = TypeVar("Model", bound=nn.Module)


def check_parallel(name: str, env: DistEnv, choices: Sequence[str] = PARALLEL, why: str = "") -> str:
    """`experiment.parallel`, checked against the number of processes.

    Args:
        choices: what the stage can do; `why` ends the line that refuses another known choice.

    Raises:
        ValueError: an unknown or refused choice, or `none` in several processes, which would train apart.
    """
    if name not in choices:
        reason = f"; {why}" if why and name in PARALLEL else ""
        raise ValueError(f"experiment.parallel={name!r}: choose from {', '.join(choices)}{reason}")
    if name == "none" and env.is_distributed:
        others = " or ".join(choice for choice in choices if choice != "none")
        raise ValueError(f"experiment.parallel='none' is one process, and these are {env.world_size}: choose {others}")
    return name


def wrap(
    model: nn.Module, env: DistEnv, *, static_graph: bool = False, find_unused_parameters: bool = False
) -> nn.Module:
    """`model` under DistributedDataParallel; the model itself in a single process or without trainable parameters.

    Every rank starts from rank 0's parameters and buffers. Buffers are not broadcast again: codebooks are kept equal
    by their own all-reduced updates, and batch statistics belong to a rank.

    Args:
        static_graph: the same parameters get gradients in every step.
        find_unused_parameters: some parameters may get none; costs a walk over the graph per step.
    """
    if not env.is_distributed or not any(parameter.requires_grad for parameter in model.parameters()):
        return model
    with torch.no_grad():
        for buffer in model.buffers():
            broadcast_(buffer)
    wrapped = DistributedDataParallel(
        model,
        device_ids=[env.device.index] if env.device.type == "cuda" else None,
        **_KEEP_BUFFERS,
        gradient_as_bucket_view=True,
        static_graph=static_graph,
        find_unused_parameters=find_unused_parameters,
    )
    if env.backend == "gloo" and env.world_size > 2:
        # DDP compares annotations with types; here they are texts
        wrapped.register_comm_hook(None, lambda _, bucket: _mean_in_rank_order(bucket))
    return wrapped


def _mean_in_rank_order(bucket: Any) -> Future[Tensor]:
    """The mean over ranks of one of DDP's buckets, whose bits do not depend on where a gradient lies in it.

    DDP lays its buckets out anew after the first step of a process, and gloo's own sum begins at a rank that depends on
    the place: of three ranks and more a resumed run would leave its other self in the last bits.
    """
    parts = gather_rows(bucket.buffer().div_(get_world_size()))
    for part in parts[1:]:
        parts[0].add_(part)
    done: Future[Tensor] = Future()
    done.set_result(parts[0])
    return done


def shard(model: nn.Module, units: Iterable[nn.Module], env: DistEnv, dtype: torch.dtype | None = None) -> nn.Module:
    """Shards a model in place over all processes; in a single process it stays whole.

    Each unit is gathered for its own forward and backward alone, everything else together with the root. Units compute
    in `dtype`; what is the root's own (embeddings, last norm, classifier) stays fp32, so that the residual stream does,
    and autocast rounds for its products. Gradients are summed over ranks in fp32.

    Args:
        model: on the meta device (then see `materialise`), or with the same values on every rank.
        units: the blocks.
    """
    accept_any_placement(model)
    if env.is_distributed:
        shard_over(model, units, init_device_mesh(env.device.type, (env.world_size,)), dtype)
    return model


def shard_over(model: nn.Module, units: Iterable[nn.Module], mesh: DeviceMesh, dtype: torch.dtype | None) -> None:
    """`shard` over the processes of a one-dimensional mesh."""

    def placement(parameter: nn.Parameter) -> Shard:
        # the first dim that divides evenly: a position table (1, T, C) would otherwise be one rank's alone
        even = [dim for dim, size in enumerate(parameter.shape) if size % mesh.size() == 0 and size]
        return Shard(even[0] if even else 0)

    policy = MixedPrecisionPolicy(param_dtype=dtype, reduce_dtype=torch.float32, cast_forward_inputs=False)
    for unit in units:
        fully_shard(unit, mesh=mesh, shard_placement_fn=placement, mp_policy=policy)
    # resharded after the forward like the units, so that between steps every parameter is a share
    fully_shard(
        model,
        mesh=mesh,
        shard_placement_fn=placement,
        reshard_after_forward=True,
        mp_policy=MixedPrecisionPolicy(cast_forward_inputs=False),
    )


@torch.no_grad()
def materialise(model: nn.Module, device: torch.device) -> None:
    """Gives a model on the meta device the very values that its constructor draws from the same random state.

    Parameters are drawn module by module in the order of construction, on the CPU, and each rank keeps its share: no
    rank ever holds more than its shares and the parameters of one module. Every module with parameters or buffers of
    its own must set all of them in `reset_parameters()`.
    """
    model.to_empty(device=device)
    for module in model.modules():
        tensors = [*module._parameters.items(), *module._buffers.items()]
        live = {name: tensor for name, tensor in tensors if tensor is not None}
        if not live:
            continue
        reset_parameters = getattr(module, "reset_parameters", None)
        assert reset_parameters is not None, f"{type(module).__name__} has no reset_parameters()"
        with _whole_on_cpu(module, live):
            reset_parameters()


@contextmanager
def _whole_on_cpu(module: nn.Module, live: dict[str, Tensor]) -> Iterator[None]:
    """Inside, the module's own tensors are plain, whole and on the CPU; afterwards `live` holds what was set."""
    for name, tensor in live.items():
        whole = torch.empty(tensor.shape, dtype=tensor.dtype)
        if name in module._parameters:
            module._parameters[name] = nn.Parameter(whole)
        else:
            module._buffers[name] = whole
    try:
        yield
        for name, tensor in live.items():
            copy_into(tensor.detach(), getattr(module, name).detach())
    finally:
        for name, tensor in live.items():
            own: dict[str, Any] = module._parameters if name in module._parameters else module._buffers
            own[name] = tensor


@contextmanager
def _unsynchronised(model: FSDPModule) -> Iterator[None]:
    model.set_requires_gradient_sync(False)
    try:
        yield
    finally:
        model.set_requires_gradient_sync(True)


def no_sync(model: nn.Module, enabled: bool = True) -> AbstractContextManager[None]:
    """While `enabled`, backward adds to the gradients without averaging them over ranks (accumulation).

    A sharded model keeps the whole gradients in fp32 on every rank until the step that averages them.
    """
    if enabled and isinstance(model, DistributedDataParallel):
        return model.no_sync()
    if enabled and isinstance(model, FSDPModule):
        return _unsynchronised(model)
    return nullcontext()


def is_sharded(model: nn.Module) -> bool:
    """Whether the parameters are shares, so that forward and backward are collective."""
    return isinstance(model, FSDPModule)


def in_step(model: nn.Module, batches: Iterable[Any], idle: Any, device: torch.device) -> Iterator[Any]:
    """Batches for as many forward passes as the rank with the most batches has, where these are collective.

    A rank that has no batch left calls `idle()`, which must run the model once. Without sharding, just the batches.
    """
    if not is_sharded(model):
        yield from batches
        return
    for batch in batches:
        all_reduce_sum_(torch.ones((), device=device))
        yield batch
    while all_reduce_sum_(torch.zeros((), device=device)) > 0:
        idle()


def local(tensor: Tensor) -> Tensor:
    """This rank's share of a sharded tensor, in the same memory; a plain tensor as it is."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def full(tensor: Tensor) -> Tensor:
    """The whole of a sharded tensor (every rank must call it); a plain tensor as it is."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


@torch.no_grad()
def copy_into(target: Tensor, source: Tensor) -> None:
    """Overwrites `target` by `source`; each may be sharded or whole, on any device, of any number type.

    A sharded source for another placement is gathered, which is collective; everything else is local.
    """
    if isinstance(target, DTensor) and _same_placement(source, target):
        local(target).copy_(local(source))
        return
    source = full(source)
    if source.shape != target.shape:
        raise ValueError(f"a tensor of shape {list(source.shape)} does not fit one of {list(target.shape)}")
    local(target).copy_(_share(source, target) if isinstance(target, DTensor) else source)


def placed_like(source: Tensor, like: Tensor) -> Tensor:
    """The values of `source` with the placement and device of `like` (not its number type); itself if it has these."""
    if source.device == like.device and _same_placement(source, like):
        return source
    result = torch.empty_like(like, dtype=source.dtype)
    copy_into(result, source)
    return result


def _same_placement(source: Tensor, target: Tensor) -> bool:
    if isinstance(source, DTensor) and isinstance(target, DTensor):
        return source.placements == target.placements and source.device_mesh == target.device_mesh
    return not isinstance(source, DTensor) and not isinstance(target, DTensor)


def _share(whole: Tensor, like: DTensor) -> Tensor:
    """What of a whole tensor belongs to this rank."""
    (placement,), mesh = like.placements, like.device_mesh
    if isinstance(placement, Replicate):
        return whole
    assert isinstance(placement, Shard), "`shard_over` places in no other way"
    chunks = whole.chunk(mesh.size(), dim=placement.dim)
    rank = mesh.get_local_rank()
    return chunks[rank] if rank < len(chunks) else whole.narrow(placement.dim, 0, 0)


def accept_any_placement(model: nn.Module) -> None:
    """Lets `model.load_state_dict` take whole tensors and shares alike, whichever of the two the model holds."""
    model.register_load_state_dict_pre_hook(_place_like_live)


def _place_like_live(module: nn.Module, state: dict[str, Any], prefix: str, *_: Any) -> None:
    live = dict(module.named_parameters()) | dict(module.named_buffers())
    for name, tensor in live.items():
        given = state.get(prefix + name)
        if not isinstance(given, Tensor) or given.shape != tensor.shape:
            continue  # load_state_dict itself says what is wrong
        if not _same_placement(given, tensor):
            state[prefix + name] = placed_like(given, tensor)


@torch.no_grad()
def gather_to_main(tensors: dict[str, Tensor], is_main: bool) -> dict[str, Tensor]:
    """Whole tensors in CPU memory on the main process, empty on the others; every rank must call it.

    One tensor is whole on the device at a time.
    """
    gathered = {}
    for name, tensor in tensors.items():
        whole = full(tensor.detach())
        if is_main:
            gathered[name] = torch.empty(whole.shape, dtype=whole.dtype).copy_(whole)
    return gathered


@torch.no_grad()
def whole_copy(model: nn.Module, build: Callable[[], Model], device: torch.device, wanted: bool = True) -> Model | None:
    """A plain model with the values of a sharded one, for what is not collective; every rank must call it.

    Args:
        build: gives a model of the same kind.
        wanted: whether this rank gets one, or only takes part.
    """
    copy = None
    if wanted:
        with torch.device("meta"):
            copy = build()
        copy = copy.to_empty(device=device).eval()
    values = {} if copy is None else copy.state_dict()
    for name, tensor in model.state_dict().items():
        whole = full(tensor)
        if name in values:
            values[name].copy_(whole)
    return copy
