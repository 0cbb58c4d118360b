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
from rqtransformer.decoding.frame_codes import FrameCodes, FrameSampler, frame_sampler
from rqtransformer.decoding.pixel_decoding import decode_in_batches
from rqtransformer.draw_settings import DrawSettings

__all__ = [
    "Decoder",
    "DrawSettings",
    "FrameCodes",
    "FrameSampler",
    "PartialCodes",
    "SampledBatch",
    "check_codes",
    "decode_in_batches",
    "frame_sampler",
    "sample",
    "sample_batches",
    "sample_stream",
]
