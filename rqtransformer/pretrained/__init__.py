"""Loading of trained models; `python -m rqtransformer.pretrained inspect|convert PATH` for the files of both stages."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rqtransformer.pretrained.loading import load_rqtransformer, sampling_settings
else:
    from rqstack.late_imports import late_names

    __getattr__ = late_names(
        __name__,
        {
            "rqtransformer.pretrained.loading": ("load_rqtransformer", "sampling_settings"),
        },
    )

__all__ = ["load_rqtransformer", "sampling_settings"]
