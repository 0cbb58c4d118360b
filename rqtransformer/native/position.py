"""All codes of one position drawn by a single compiled call.

Legend: B batch, C width, D code depth, E code-vector size, K codes of a table.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from rqtransformer.draw_settings import DrawSettings
from rqtransformer.kv_cache import KVCache
from rqtransformer.native import calls
from rqtransformer.native.calls import MapStruct, NativeLinear, NativeStack, NormStruct, norm_struct


class _Depth(ctypes.Structure):
    _fields_ = [
        ("token", ctypes.c_void_p),
        ("classifier", MapStruct),
        ("input_table", ctypes.c_void_p),
        ("head_table", ctypes.c_void_p),
        ("vocabulary", ctypes.c_int64),
        ("top_k", ctypes.c_int64),
        ("top_p", ctypes.c_double),
        ("temperature", ctypes.c_float),
    ]


class _Head(ctypes.Structure):
    _fields_ = [
        ("stack", ctypes.c_void_p),
        ("norm", NormStruct),
        ("project", ctypes.c_void_p),
        ("depths", ctypes.POINTER(_Depth)),
        ("depth", ctypes.c_int64),
        ("input_size", ctypes.c_int64),
        ("head_size", ctypes.c_int64),
        ("cumulate", ctypes.c_int32),
    ]


@dataclass(frozen=True)
class HeadParts:
    """The head as the draw of one position needs it; all tensors fp32, contiguous, on a CPU.

    Attributes:
        stack, norm, classifiers: from the head's input to the logits; one classifier per depth.
        project: code vectors -> the head's input; None: the vectors themselves.
        tokens_DC: added to the head's input at every depth.
        input_tables, head_tables: code vectors (K, E) per depth, for the body and for the head.
        cumulate: the head sees the sum of the vectors so far.
        vocab_sizes: codes of every depth.
    """

    stack: NativeStack
    norm: nn.LayerNorm
    classifiers: Sequence[NativeLinear]
    project: NativeLinear | None
    tokens_DC: Tensor
    input_tables: Sequence[Tensor]
    head_tables: Sequence[Tensor]
    cumulate: bool
    vocab_sizes: Sequence[int]


class NativePosition:
    """Context of a position -> its codes.

    Args:
        parts: of the head.
        settings: of every depth, with no rule but those of `_Depth`.
    """

    def __init__(self, parts: HeadParts, settings: Sequence[DrawSettings]):
        self._parts = parts  # the addresses below are theirs
        self._input_size = parts.input_tables[0].shape[1]
        depths = (_Depth * len(settings))()
        rows = zip(parts.tokens_DC, parts.classifiers, parts.input_tables, parts.head_tables, parts.vocab_sizes)
        for depth, (token_C, classifier, input_table, head_table, size), setting in zip(depths, rows, settings):
            depth.token, depth.classifier = token_C.data_ptr(), classifier.struct
            depth.input_table, depth.head_table = input_table.data_ptr(), head_table.data_ptr()
            depth.vocabulary, depth.top_k = size, size if setting.top_k is None else min(setting.top_k, size)
            depth.top_p, depth.temperature = 1.0 if setting.top_p is None else setting.top_p, setting.temperature
        project = None if parts.project is None else ctypes.addressof(parts.project.struct)
        self._head = _Head(
            ctypes.addressof(parts.stack.struct),
            norm_struct(parts.norm),
            project,
            depths,
            len(settings),
            self._input_size,
            parts.head_tables[0].shape[1],
            parts.cumulate,
        )

    def __call__(self, context_BC: Tensor, uniform_DB: Tensor, cache: KVCache) -> tuple[Tensor, Tensor]:
        """(Codes (B, D), sum of their vectors for the body (B, E)); overwrites the head's cache."""
        context_BC, uniform_DB = context_BC.contiguous(), uniform_DB.contiguous()
        codes_BD = torch.empty(len(context_BC), len(uniform_DB), dtype=torch.long)
        sum_BE = context_BC.new_empty(len(context_BC), self._input_size)
        calls.compiled().rq_position(
            ctypes.addressof(self._head),
            cache.memory.data_ptr(),
            context_BC.data_ptr(),
            uniform_DB.data_ptr(),
            codes_BD.data_ptr(),
            sum_BE.data_ptr(),
            len(context_BC),
            torch.get_num_threads(),
        )
        return codes_BD, sum_BE
