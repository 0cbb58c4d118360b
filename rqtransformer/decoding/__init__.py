"""Conditions -> codes -> pixels: the request, the walk through positions and depths, the draw."""

from rqtransformer.decoding.code_sampling import (
    Decoder,
    PartialCodes,
    SampledBatch,
    sample,
    sample_batches,
    sample_stream,
)
from rqtransformer.decoding.pixel_decoding import decode_in_batches

__all__ = [
    "Decoder",
    "PartialCodes",
    "SampledBatch",
    "decode_in_batches",
    "sample",
    "sample_batches",
    "sample_stream",
]
