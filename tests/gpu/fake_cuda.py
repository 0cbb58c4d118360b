"""CUDA without a card: the project's own code on fake tensors that say they live on `cuda:0`.

`fake_cuda()` is the world: tensors have shapes, types and devices but no memory. `no_host_sync()` watches inside it: an
operation for which the host would wait for the device, a tensor of the host among tensors of the device, or a copy
between the two is an error that names the file and the line.

What this cannot show, and why it is left to `benchmarks.gpu` on a card:

- that a kernel exists for an operation, its shapes and its number types: fake tensors only work out shapes;
- numbers: there are none. Data decides nothing either: a number that is read where that is allowed is always 0;
- whether recording a graph is legal (allocations, workspaces, random states, which streams), and what a replay does:
  the recorded step runs once here, under the rule that nothing at all is copied between host and device;
- races between streams, and memory that is freed while another stream reads it: there are no streams;
- waits inside a kernel's host code that the list below does not know (a library that asks for sizes);
- Triton kernels: they need addresses. Here the plain form beside each of them runs;
- `torch.compile`: it makes fake tensors of its own;
- random states of the device (`torch.Generator("cuda")`, `torch.cuda.get_rng_state`): they need a driver;
- the order of backward passes: `fake_autograd` walks the graph in one thread;
- more than one process, NCCL, DDP and FSDP;
- memory: what is live at once, and whether it fits;
- pinned memory: a copy that says it does not block is believed.
"""

from __future__ import annotations

import contextlib
import sys
import warnings
from collections.abc import Iterator, Mapping
from types import FrameType
from typing import Any
from unittest.mock import patch

import torch
import torch._subclasses.fake_tensor as fake_tensor
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from tests.gpu.fake_autograd import backward_without_driver
from tests.repository import ROOT

CUDA = torch.device("cuda", 0)

# The result's size depends on the data, or an error of the data is reported: the host reads it.
WAITING = {
    "_linalg_check_errors",
    "_linalg_eigh",
    "_linalg_svd",
    "_local_scalar_dense",
    "_unique2",
    "bincount",
    "equal",
    "histc",
    "is_nonzero",
    "masked_select",
    "multinomial",
    "nonzero",
    "unique_consecutive",
    "unique_dim",
}
COPIES = {"_to_copy", "copy_"}
FILLING = {"fill_"}  # `x[...] = 1.0` comes as a tensor of the host with one number
INTERNAL = ("/fake_cuda.py", "/fake_autograd.py")
INDEXING = {"index", "index_put", "index_put_", "_index_put_impl_", "_unsafe_index", "_unsafe_index_put"}


class HostSync(AssertionError):
    """The host would wait for the device."""


class MixedDevices(AssertionError):
    """A tensor of the host meets tensors of the device."""


class Watch(TorchDispatchMode):
    """Sees every operation before the fake tensors do; one per `fake_cuda`, which `no_host_sync` makes strict.

    strict: raise; without it (while models are built) every number that is read is 0. legal: see `no_host_sync`.
    """

    current: Watch

    def __init__(self) -> None:
        super().__init__()
        self.strict, self.recording, self.recordings = False, False, 0
        self.legal: Mapping[str, str] = {}
        self.unused: set[str] = set()
        Watch.current = self

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """Nothing is compiled here, and the guard against it costs as much as the rest."""
        return False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = func.overloadpacket.__name__
        tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        devices = {_device(tensor).type for tensor in tensors}
        if name in COPIES:
            self._check_copy(name, args, kwargs)
        elif "cuda" in devices:
            if name in WAITING or _chosen_by_data(name, args, kwargs):
                self.judge(HostSync, f"{name} waits for the device")
            if len(devices) > 1 and name not in FILLING:
                self.judge(MixedDevices, f"{name} of tensors on {', '.join(str(_device(t)) for t in tensors)}")
        if name == "_local_scalar_dense" and getattr(args[0], "constant", None) is None:
            return _zero(args[0].dtype)
        return func(*args, **kwargs)

    def _check_copy(self, name: str, args: Any, kwargs: Any) -> None:
        if name == "copy_":
            source, target = _device(args[1]), _device(args[0])
            blocking = not (args[2] if len(args) > 2 else kwargs.get("non_blocking", False))
        else:
            source = _device(args[0])
            target = torch.device(kwargs.get("device") or source)
            blocking = not kwargs.get("non_blocking", False)
        if {source.type, target.type} == {"cpu", "cuda"} and (blocking or target.type == "cpu" or self.recording):
            self.judge(HostSync, f"{name} copies from {source.type} to {target.type}")

    def judge(self, error: type[AssertionError], what: str) -> None:
        """Raises `error` unless the innermost function of the project is listed as legal."""
        if not self.strict:
            return
        frames = list(_project_frames(sys._getframe(1)))
        place = next((f"{file}:{name}" for file, _, name in frames if not name.startswith("<")), "")
        self.unused.discard(place)
        if place not in self.legal or self.recording:
            where = (
                " < ".join(f"{file}:{line} in {name}" for file, line, name in frames[:4]) or "outside of the project"
            )
            raise error(f"{what}: {where}")


def _project_frames(frame: FrameType | None) -> Iterator[tuple[str, int, str]]:
    """(File, line, function) of the callers that belong to the project, innermost first."""
    here = f"{ROOT}/"
    while frame is not None:
        file = frame.f_code.co_filename
        if file.startswith(here) and "site-packages" not in file and not file.endswith(INTERNAL):
            yield file[len(here) :], frame.f_lineno, frame.f_code.co_name
        frame = frame.f_back


def _device(tensor: Tensor) -> torch.device:
    """The attribute itself: the property asks the mode."""
    return getattr(tensor, "fake_device", None) or tensor.device


def _chosen_by_data(name: str, args: Any, kwargs: Any) -> bool:
    """Whether a mask, or counts on the device, say how many elements there are."""
    if name in INDEXING:
        chosen = args[1] if len(args) > 1 else kwargs.get("indices", ())
        return any(isinstance(index, Tensor) and index.dtype in (torch.bool, torch.uint8) for index in chosen)
    return name == "repeat_interleave" and kwargs.get("output_size") is None


def _zero(dtype: torch.dtype) -> bool | int | float | complex:
    if dtype == torch.bool:
        return False
    return 0j if dtype.is_complex else 0.0 if dtype.is_floating_point else 0


@contextlib.contextmanager
def no_host_sync(legal: Mapping[str, str] | None = None) -> Iterator[Watch]:
    """Inside, whatever makes the host wait for the device, or mixes the two, raises.

    Args:
        legal: "file:function" -> reason, of functions in which it may happen. An entry that was not needed is an error
            too: the list cannot outlive what it excuses.
    """
    watch = Watch.current
    watch.strict, watch.legal, watch.unused = True, legal or {}, set(legal or {})
    try:
        yield watch
    finally:
        watch.strict = False
    assert not watch.unused, f"nothing waits any more in {sorted(watch.unused)}: remove it from the list"


@contextlib.contextmanager
def fake_cuda() -> Iterator[FakeTensorMode]:
    """The world in which `cuda:0` exists. Everything that is built or drawn inside is fake."""
    with contextlib.ExitStack() as stack:
        stack.enter_context(warnings.catch_warnings())
        # an address is kept to tell tensors apart, never read
        warnings.filterwarnings("ignore", "Accessing the data pointer of FakeTensor")
        for name, value in _driver().items():
            stack.enter_context(patch.object(torch.cuda, name, value, create=True))
        stack.enter_context(patch.object(fake_tensor, "init_gpu_context", lambda device=None: None))
        stack.enter_context(patch.object(FakeTensorMode, "avoid_device_init", property(lambda mode: True)))
        stack.enter_context(patch.object(nn.Module, "_apply", _apply_by_replacement))
        stack.enter_context(patch.object(FakeTensor, "data_ptr", lambda tensor: tensor.untyped_storage()._cdata))
        stack.enter_context(patch.object(torch.UntypedStorage, "data_ptr", lambda storage: storage._cdata))
        stack.enter_context(backward_without_driver())
        mode = stack.enter_context(FakeTensorMode())
        stack.enter_context(Watch())
        yield mode


def _apply_by_replacement(self: nn.Module, fn: Any, recurse: bool = True) -> nn.Module:
    """`Module._apply` with new parameters in the place of the old: fake ones can be neither swapped nor set."""
    if recurse:
        for child in self.children():
            child._apply(fn)
    for name, parameter in list(self._parameters.items()):
        if parameter is not None:
            with torch.no_grad():
                moved = fn(parameter.detach())
            if _layout(moved) != _layout(parameter):
                self._parameters[name] = nn.Parameter(moved, parameter.requires_grad)
    for name, buffer in list(self._buffers.items()):
        if buffer is not None:
            self._buffers[name] = fn(buffer)
    return self


def _layout(tensor: Tensor) -> tuple[Any, ...]:
    return tensor.device, tensor.dtype, tensor.stride()


def _driver() -> dict[str, Any]:
    """What of `torch.cuda` would ask the driver."""

    def synchronize(*_: Any) -> None:
        Watch.current.judge(HostSync, "torch.cuda.synchronize waits for the device")

    nothing = _Nothing()
    return {
        "is_available": lambda: True,
        "is_initialized": lambda: True,
        "_lazy_init": lambda: None,
        "device_count": lambda: 1,
        "current_device": lambda: 0,
        "set_device": lambda device: None,
        "device": lambda device: contextlib.nullcontext(),
        "get_device_name": lambda *_: "fake",
        "get_device_capability": lambda *_: (9, 0),
        "is_bf16_supported": lambda *_, **__: True,
        "manual_seed": lambda seed: None,
        "manual_seed_all": lambda seed: None,
        "get_rng_state": lambda *_: torch.zeros(16, dtype=torch.uint8),
        "set_rng_state": lambda *_: None,
        "empty_cache": lambda: None,
        "mem_get_info": lambda *_: (2**36, 2**37),
        "memory_allocated": lambda *_: 0,
        "max_memory_allocated": lambda *_: 0,
        "Stream": lambda *_, **__: nothing,
        "Event": lambda *_, **__: nothing,
        "current_stream": lambda *_: nothing,
        "default_stream": lambda *_: nothing,
        "stream": lambda stream: contextlib.nullcontext(),
        "CUDAGraph": _Graph,
        "graph_pool_handle": lambda: (0, 0),
        "is_current_stream_capturing": lambda: Watch.current.recording,
        "synchronize": synchronize,
    }


class _Nothing:
    """A stream or an event: its methods do nothing, but for waiting."""

    def __getattr__(self, name: str) -> Any:
        if name == "synchronize":
            return torch.cuda.synchronize
        return lambda *_, **__: None


class _Graph(_Nothing):
    """A recording: the step runs while it is made, and may not even copy without waiting."""

    def capture_begin(self, *_: Any, **__: Any) -> None:
        Watch.current.recording = True

    def capture_end(self) -> None:
        Watch.current.recording = False
        Watch.current.recordings += 1
