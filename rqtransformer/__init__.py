"""Stage 2: the RQ-Transformer, its loss and its decoding. Needs no config file, data set or run directory."""

from typing import TYPE_CHECKING

from rqstack import __version__ as __version__

if TYPE_CHECKING:
    from rqtransformer.config import RQTransformerConfig
    from rqtransformer.decoding import frame_sampler, sample, sample_stream
    from rqtransformer.decoding.pixel_decoding import decode_in_batches
    from rqtransformer.hierarchical import HierarchicalTransformer
    from rqtransformer.hierarchical_config import HierarchicalConfig
    from rqtransformer.model import RQTransformer
    from rqtransformer.pretrained import load_rqtransformer
else:
    from rqstack.late_imports import late_names

    __getattr__ = late_names(
        __name__,
        {
            "rqtransformer.config": ("RQTransformerConfig",),
            "rqtransformer.decoding": ("frame_sampler", "sample", "sample_stream"),
            "rqtransformer.decoding.pixel_decoding": ("decode_in_batches",),
            "rqtransformer.hierarchical": ("HierarchicalTransformer",),
            "rqtransformer.hierarchical_config": ("HierarchicalConfig",),
            "rqtransformer.model": ("RQTransformer",),
            "rqtransformer.pretrained": ("load_rqtransformer",),
        },
    )

__all__ = [
    "HierarchicalConfig",
    "HierarchicalTransformer",
    "RQTransformer",
    "RQTransformerConfig",
    "decode_in_batches",
    "frame_sampler",
    "load_rqtransformer",
    "sample",
    "sample_stream",
]
