"""Group vector quantization under vqtorch's name."""

from __future__ import annotations

from typing import Any

from rqstack.quantizers.arithmetic.signatures import checks_arguments
from rqstack.quantizers.compat.vqtorch.nn.vq import VectorQuant


@checks_arguments
class GroupVectorQuant(VectorQuant):
    """`VectorQuant` whose third and fourth arguments are `groups` and `share`; the codes of a group follow those of the
    one before where codebooks are separate."""

    def __init__(self, feature_size: int, num_codes: int, groups: int = 1, share: bool = True, **kwargs: Any):
        super().__init__(feature_size, num_codes, groups=groups, share=share, **kwargs)
