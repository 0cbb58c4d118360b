"""How weights are kept while decoding. Settings alone: flags, which name them, are read before torch is imported."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

WEIGHT_FORMATS = ("dense", "int8")


@dataclass(frozen=True)
class WeightFormat:
    """How weights are kept while decoding.

    Attributes:
        dtype: of the products' inputs and outputs; None is that of the parameters.
        kind: dense, or int8: one scale per output feature, a quarter of fp32's bytes, products in `dtype`. Where the
            processor has no kernel for it (fp32; more than 64 rows on a GPU), the weight is expanded at every product:
            less memory, more time.
    """

    dtype: torch.dtype | None = None
    kind: str = "dense"

    def validate(self) -> None:
        """Raises ValueError for an unknown kind."""
        if not isinstance(self.kind, str) or self.kind not in WEIGHT_FORMATS:
            given = repr(self.kind) if isinstance(self.kind, str) else type(self.kind).__name__
            raise ValueError(f"weights={given:.80} must be one of {', '.join(WEIGHT_FORMATS)}")
