"""Vector pooling under the names and defaults of vqtorch."""

from __future__ import annotations

from rqstack.quantizers.arithmetic.signatures import checks_arguments
from rqstack.quantizers.wrappers.vector_pooling import MaxVectorPool2d, SoftmaxVectorPool2d


@checks_arguments
class MaxVecPool2d(MaxVectorPool2d):
    """The longest vector of every window of (B, C, H, W)."""

    def __init__(self, kernel_size: int = 3, stride: int = 2, padding: int = 2, dilation: int = 1):
        super().__init__(kernel_size, stride, padding, dilation)


@checks_arguments
class SoftMaxVecPool2d(SoftmaxVectorPool2d):
    """The mean of every window weighted by the softmax of the vectors' lengths."""

    def __init__(self, kernel_size: int = 3, stride: int = 2, padding: int = 2, dilation: int = 1):
        super().__init__(kernel_size, stride, padding, dilation)


SoftMaxPool2d = SoftMaxVecPool2d
