"""The level tables of the scalar quantizers under the names that programs reach for."""

from __future__ import annotations

from torch import Tensor, nn

from rqstack.quantizers.arithmetic.mixed_radix import MixedRadix


class LevelNumbers(nn.Module):
    """`_levels` and `_basis` of a module with one number of levels for every scalar."""

    @property
    def _radix(self) -> MixedRadix:
        return next(module for module in self.children() if isinstance(module, MixedRadix))

    @property
    def _levels(self) -> Tensor:
        """The number of values of every scalar, int32."""
        return self._radix.levels.int()

    @property
    def _basis(self) -> Tensor:
        """What one step of every scalar adds to an index, int32."""
        return self._radix.strides.int()
