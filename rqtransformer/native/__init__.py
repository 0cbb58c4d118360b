"""Decoding in fp32 on a CPU as compiled C++: a step through a stack of blocks, linear maps of few rows, the draw."""

from rqtransformer.native.calls import (
    GELU,
    NO_ACTIVATION,
    SIGMOID_GELU,
    NativeLinear,
    NativeStack,
    digest,
    draw,
    serves,
)
from rqtransformer.native.position import HeadParts, NativePosition

__all__ = [
    "GELU",
    "NO_ACTIVATION",
    "SIGMOID_GELU",
    "HeadParts",
    "NativeLinear",
    "NativePosition",
    "NativeStack",
    "digest",
    "draw",
    "serves",
]
