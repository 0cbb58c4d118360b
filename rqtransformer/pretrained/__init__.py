"""Loading of trained models; `python -m rqtransformer.pretrained inspect|convert PATH` for the files of both stages."""

from rqtransformer.pretrained.loading import load_rqtransformer, sampling_settings

__all__ = ["load_rqtransformer", "sampling_settings"]
