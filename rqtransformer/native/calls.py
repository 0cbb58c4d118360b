"""The compiled functions, with torch tensors on a CPU in fp32 as arguments.

Legend: B batch, C width, I input features, O output features, M outputs of a block, V vocabulary.
"""

from __future__ import annotations

import ctypes
import functools
import warnings
import zlib
from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rqtransformer.draw_settings import DrawSettings
from rqtransformer.kv_cache import KVCache
from rqtransformer.native.build import SYMBOLS, library_path

NO_ACTIVATION, GELU, SIGMOID_GELU = range(3)
Norm = nn.LayerNorm | nn.RMSNorm
_Pointer, _Int, _Float = ctypes.c_void_p, ctypes.c_int64, ctypes.c_float


class MapStruct(ctypes.Structure):
    """`Map` of product.h."""

    _fields_ = [("weight", _Pointer), ("bias", _Pointer), ("inputs", _Int), ("outputs", _Int)]


class NormStruct(ctypes.Structure):
    """`Norm` of functions.h."""

    _fields_ = [("weight", _Pointer), ("bias", _Pointer), ("eps", _Float)]


class _Layer(ctypes.Structure):
    _fields_ = [("norm1", NormStruct), ("norm2", NormStruct)]
    _fields_ += [(name, MapStruct) for name in ("joint", "proj", "up", "down")]
    _fields_ += [("activation", ctypes.c_int32)]


class _Stack(ctypes.Structure):
    _fields_ = [(name, _Int) for name in ("num_layers", "width", "heads", "kv_heads", "features")]
    _fields_ += [("layers", ctypes.POINTER(_Layer)), ("slopes", _Pointer)]


class _Cache(ctypes.Structure):
    _fields_ = [("keys_values", _Pointer), ("max_length", _Int), ("length", _Int)]


@functools.cache
def library() -> ctypes.CDLL | None:
    """The compiled functions, or None (`build.library_path`)."""
    path = library_path()
    if path is None:
        return None
    try:
        return load(path)
    except OSError as error:
        warnings.warn(f"decoding and training on a CPU run without compiled code, slower: {error}", stacklevel=2)
        return None


def load(path: Path) -> ctypes.CDLL:
    """The functions of one compiled library; OSError if it is none, or not all of them are in it."""
    found = ctypes.CDLL(str(path))
    for name in SYMBOLS:
        if not hasattr(found, name):
            raise OSError(f"{path} has no function {name}")
    found.rq_block.restype = _Int
    found.rq_step.argtypes = [*[_Pointer] * 4, _Int, ctypes.c_int]
    found.rq_linear.argtypes = [*[_Pointer] * 4, _Int, ctypes.c_int32, ctypes.c_int32, ctypes.c_int]
    found.rq_draw.argtypes = [
        _Pointer,
        _Int,
        _Pointer,
        _Pointer,
        _Int,
        _Int,
        _Float,
        _Int,
        ctypes.c_double,
        ctypes.c_int,
    ]
    found.rq_digest.argtypes, found.rq_digest.restype = [_Pointer, _Int], ctypes.c_uint64
    found.rq_position.argtypes = [*[_Pointer] * 6, _Int, ctypes.c_int]
    found.rq_drop.argtypes = [_Pointer, _Pointer, ctypes.c_int32, _Float, _Pointer, _Pointer, _Int, ctypes.c_int]
    found.rq_attend_close.argtypes = [*[_Pointer] * 5, *[_Int] * 4, ctypes.c_int]
    found.rq_attend_close_slopes.argtypes = [*[_Pointer] * 8, *[_Int] * 4, ctypes.c_int]
    found.rq_cross_entropy_rows.argtypes = [
        *(_Pointer, _Int),
        *(_Pointer, _Int),
        *(_Pointer, _Int),
        _Float,
        *(_Pointer, _Int),
        _Pointer,
        *(_Int, _Int),
        ctypes.c_int,
    ]
    return found


def compiled() -> ctypes.CDLL:
    """The compiled functions, where `serves` says that there are some."""
    found = library()
    assert found is not None, "nothing is compiled"
    return found


def serves(tensor: Tensor) -> bool:
    """Whether the compiled functions take this tensor."""
    return (
        type(tensor) is Tensor
        and tensor.dtype == torch.float32
        and tensor.device.type == "cpu"
        and library() is not None
    )


class NativeLinear:
    """A linear map whose weight is laid out in blocks of outputs.

    Args:
        weight_OI, bias_O: fp32, on a CPU; the bias may be None.
    """

    def __init__(self, weight_OI: Tensor, bias_O: Tensor | None):
        self.outputs, self.inputs = weight_OI.shape
        self.block = compiled().rq_block()
        missing = -self.outputs % self.block
        blocks_PMI = F.pad(weight_OI, (0, 0, 0, missing)).unflatten(0, (-1, self.block))
        self.weight_PIM = blocks_PMI.transpose(1, 2).contiguous()
        self.bias_O = None if bias_O is None else F.pad(bias_O, (0, missing))
        self.struct = MapStruct(self.weight_PIM.data_ptr(), address(self.bias_O), self.inputs, self.outputs)
        self._place = ctypes.addressof(self.struct)

    def __call__(self, x: Tensor, residual: Tensor | None = None, activation: int = NO_ACTIVATION) -> Tensor:
        """activation(map(x)) + residual, for x (..., I)."""
        x = x.contiguous()
        shape = (*x.shape[:-1], self.outputs)
        out = (
            x.new_empty(shape)
            if residual is None
            else residual.expand(shape).clone(memory_format=torch.contiguous_format)
        )
        if x.numel():
            compiled().rq_linear(
                self._place,
                None,
                x.data_ptr(),
                out.data_ptr(),
                x.numel() // self.inputs,
                activation,
                residual is not None,
                torch.get_num_threads(),
            )
        return out


class NativeStack:
    """One position through a stack of blocks.

    Args:
        norms: two per layer. maps: joint query-key-value, output, up and down map per layer.
        activation: one of those above. heads: heads of queries, heads of keys and values, features per head.
        slopes: one per head of queries (ALiBi), or None.
    """

    def __init__(
        self,
        norms: Sequence[tuple[Norm, Norm]],
        maps: Sequence[Sequence[NativeLinear]],
        activation: int,
        heads: tuple[int, int, int],
        slopes: Sequence[float] | None,
    ):
        self._kept = (norms, maps, torch.tensor(slopes or []))  # the addresses below are theirs
        self._layers = (_Layer * len(maps))()
        for layer, pair, four in zip(self._layers, norms, maps):
            layer.norm1, layer.norm2 = map(norm_struct, pair)
            layer.joint, layer.proj, layer.up, layer.down = (linear.struct for linear in four)
            layer.activation = activation
        self.struct = _Stack(
            len(maps), maps[0][0].inputs, *heads, self._layers, None if slopes is None else self._kept[2].data_ptr()
        )

    def __call__(self, x_BC: Tensor, cache: KVCache) -> Tensor:
        """(B, C) -> (B, C); the cache takes the new keys and values and moves on."""
        assert cache.length < cache.max_length, f"cache of {cache.max_length} positions cannot take {cache.length + 1}"
        x_BC = x_BC.contiguous()
        out_BC = torch.empty_like(x_BC)
        place = _Cache(cache.memory.data_ptr(), cache.max_length, cache.length)
        compiled().rq_step(
            ctypes.addressof(self.struct),
            ctypes.addressof(place),
            x_BC.data_ptr(),
            out_BC.data_ptr(),
            len(x_BC),
            torch.get_num_threads(),
        )
        cache.advance(1)
        return out_BC


def draw(logits_BV: Tensor, uniform_B: Tensor, settings: DrawSettings) -> Tensor:
    """Codes (B,), as `truncation.draw_truncated` draws them."""
    logits_BV, uniform_B = logits_BV.contiguous(), uniform_B.double().contiguous()
    batch, vocabulary = logits_BV.shape
    code_B = torch.empty(batch, dtype=torch.long)
    compiled().rq_draw(
        logits_BV.data_ptr(),
        vocabulary,
        uniform_B.data_ptr(),
        code_B.data_ptr(),
        batch,
        vocabulary,
        settings.temperature,
        vocabulary if settings.top_k is None else min(settings.top_k, vocabulary),
        1.0 if settings.top_p is None else settings.top_p,
        torch.get_num_threads(),
    )
    return code_B


def digest(tensor: Tensor) -> int:
    """A number that changes with any bit of a dense tensor on a CPU, with or without compiled code."""
    found = library()
    if found is not None and tensor.is_contiguous():
        return int(found.rq_digest(tensor.data_ptr(), tensor.nbytes))
    return zlib.crc32(tensor.detach().contiguous().flatten().view(torch.uint8).numpy().data)


def norm_struct(norm: Norm) -> NormStruct:
    """A LayerNorm or an RMSNorm, which must outlive what is made of it."""
    eps = torch.finfo(norm.weight.dtype).eps if norm.eps is None else norm.eps
    return NormStruct(norm.weight.data_ptr(), address(getattr(norm, "bias", None)), eps)


def address(tensor: Tensor | None) -> int | None:
    """Of the first number; the caller keeps the tensor."""
    return None if tensor is None else tensor.data_ptr()
