"""Conditions -> codes -> pixels: the request, the walk through positions and depths, the draw."""

from rqtransformer.decoding.code_sampling import (
    PartialCodes,
    SampledBatch,
    check_codes,
    sample,
    sample_batches,
    sample_stream,
)
from rqtransformer.decoding.decoder import Decoder
from rqtransformer.decoding.pixel_decoding import decode_in_batches
from rqtransformer.draw_settings import DrawSettings

__all__ = [
    "Decoder",
    "DrawSettings",
    "PartialCodes",
    "SampledBatch",
    "check_codes",
    "decode_in_batches",
    "sample",
    "sample_batches",
    "sample_stream",
]
