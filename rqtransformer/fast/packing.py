"""Linear maps laid out for decoding: weights joined, cast, reordered for the processor or rounded to int8.

A packed copy belongs to the module whose parameters it holds, is rebuilt when they change and is part of no state
dict. On a CPU it is that of our compiled product (`native`) or oneDNN's blocked layout. With both the result for a row
does not depend on how many rows come with it: the same codes for any batch size. A product of 16 rows takes up to 1.6
times less time with oneDNN's than the plain one, and another 1.1 to 2.2 times less with ours.

Legend: O output features, I input features; `...` any leading axes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rqstack.finite import is_finite
from rqstack.triton_kernels import alike, trial_numbers, use_kernel
from rqtransformer import native
from rqtransformer.fast.served import is_plain
from rqtransformer.fast.weight_format import WeightFormat
from rqtransformer.finite_draws import NonFiniteError

# The row count oneDNN plans its blocks for. One plan for all batches: another plan may round differently.
PLANNED_ROWS = 16


class PackedLinear:
    """x -> activation(x @ weight.T + bias) + residual, with the weight as `WeightFormat` says.

    Args:
        weight_OI: the weight.
        bias_O: the bias, or None.
        form: dtype and kind.
        lenders: parameters whose memory the weight or the bias may be.

    Attributes:
        native: the compiled map, or None where that is not in use.
        blocked, bias: the weight in oneDNN's layout, or None where that is not in use; the bias, or None.
    """

    def __init__(
        self,
        weight_OI: Tensor,
        bias_O: Tensor | None,
        form: WeightFormat,
        lenders: Sequence[Tensor | None] = (),
    ):
        self.dtype = form.dtype or weight_OI.dtype
        self.out_features = weight_OI.shape[0]
        self.bias = None if bias_O is None else bias_O.to(self.dtype)
        self.blocked: Tensor | None = None
        self.native: native.NativeLinear | None = None
        self._weight: Tensor | None = None
        self._scale: Tensor | None = None
        if form.kind == "int8":
            self._weight, self._scale = _round_to_int8(weight_OI, self.dtype)
        else:
            self._lay_out(weight_OI.to(self.dtype))
        lent = {tensor.untyped_storage().data_ptr() for tensor in lenders if tensor is not None}
        self._own = [tensor.untyped_storage().data_ptr() not in lent for tensor in self.tensors]

    def _lay_out(self, weight_OI: Tensor) -> None:
        if native.serves(weight_OI):
            self.native = native.NativeLinear(weight_OI, self.bias)
        elif _can_block(weight_OI):
            self.blocked = torch.ops.mkldnn._reorder_linear_weight(weight_OI.contiguous(), PLANNED_ROWS)
        else:
            self._weight = weight_OI

    def __call__(self, x: Tensor, residual: Tensor | None = None, gelu: bool = False) -> Tensor:
        """(..., I) -> (..., O). A residual keeps its own type if that is the wider one."""
        x = x.to(self.dtype)
        if self.native is not None:
            return self._native_product(self.native, x, residual, gelu)
        if self.blocked is not None:
            return self._blocked_product(x, residual, gelu)
        assert self._weight is not None, "one of the three forms is there"
        if self._scale is None:
            out = F.linear(x, self._weight, self.bias)
        else:
            out = self._int8_product(x, self._weight, self._scale)
            out = out if self.bias is None else out.add_(self.bias)
        if gelu:
            out = F.gelu(out)
        return out if residual is None else residual + out

    def product(self, x: Tensor) -> Tensor:
        """(..., I) -> (..., O) without the bias, in the plain layout."""
        assert self._weight is not None, "the weight is in another layout"
        if self._scale is None:
            return F.linear(x, self._weight)
        return self._int8_product(x, self._weight, self._scale)

    def _int8_product(self, x: Tensor, weight_OI: Tensor, scale_O: Tensor) -> Tensor:
        rows = x.reshape(-1, x.shape[-1]).contiguous()
        if use_kernel(int8_trial, x.device):
            from rqtransformer.fast.kernels import int8_triton

            if int8_triton.serves(rows, weight_OI, scale_O):
                return int8_triton.product(rows, weight_OI, scale_O).unflatten(0, x.shape[:-1])
        if not _has_int8_kernel(x):
            return F.linear(x, weight_OI.to(x.dtype) * scale_O.unsqueeze(1))
        return torch._weight_int8pack_mm(rows, weight_OI, scale_O).unflatten(0, x.shape[:-1])

    @property
    def tensors(self) -> list[Tensor]:
        """What a recorded step reads; empty where the map is in a form that none is recorded with."""
        kept = (self._weight, self._scale, self.bias)
        return [] if self._weight is None else [tensor for tensor in kept if tensor is not None]

    def take_over(self, fresh: PackedLinear) -> bool:
        """Takes the numbers of another map into its own memory, which a recorded step reads; False where it cannot.

        Never writes to a parameter that it reads as it is.
        """
        pairs = list(zip(self.tensors, fresh.tensors))
        if not pairs or len(self.tensors) != len(fresh.tensors) or self._own != fresh._own:
            return False
        if not all(_layout(old) == _layout(new) for old, new in pairs):
            return False
        if any(old.data_ptr() != new.data_ptr() for (old, new), mine in zip(pairs, self._own) if not mine):
            return False
        with torch.inference_mode():  # what was packed in it can be written to nowhere else
            for (old, new), mine in zip(pairs, self._own):
                if mine:
                    old.copy_(new)
        return True

    def __deepcopy__(self, memo: dict[int, Any]) -> None:
        """A copied module packs its own parameters."""

    def __reduce__(self) -> tuple[type[None], tuple[()]]:
        return type(None), ()

    def _native_product(self, linear: native.NativeLinear, x: Tensor, residual: Tensor | None, gelu: bool) -> Tensor:
        activation = native.GELU if gelu else native.NO_ACTIVATION
        if residual is not None and residual.dtype != self.dtype:
            return residual + linear(x, None, activation)
        return linear(x, residual, activation)

    def _blocked_product(self, x: Tensor, residual: Tensor | None, gelu: bool) -> Tensor:
        if x.numel() == x.shape[-1]:  # of a single long row the sums have another order: it is computed twice
            pair = x.reshape(1, -1).expand(2, -1)
            others = None if residual is None else residual.reshape(1, -1).expand(2, -1)
            return self._blocked_product(pair, others, gelu)[0].view(*x.shape[:-1], self.out_features)
        product = torch.ops.mkldnn._linear_pointwise
        if residual is None:
            return product(x, self.blocked, self.bias, "gelu" if gelu else "none", [], "none")
        if gelu or residual.dtype != self.dtype:
            return residual + self._blocked_product(x, None, gelu)
        return product.binary(x, residual, self.blocked, self.bias, "add")


def int8_trial(device: torch.device) -> bool:
    """Whether the Triton kernel gives the product with the expanded weight on this device."""
    from rqtransformer.fast.kernels import int8_triton

    weight_OI = (127 * trial_numbers(200, 328, device=device)).round().to(torch.int8)
    for dtype in int8_triton.KNOWN_TYPES:
        x_RI = trial_numbers(3, 328, device=device, dtype=dtype, pace=0.31)
        scale_O = ((2 + trial_numbers(200, device=device, pace=0.17)) / 127).to(dtype)
        expected_RO = x_RI.double() @ (weight_OI.double() * scale_O.double().unsqueeze(1)).T
        if not alike(int8_triton.product(x_RI, weight_OI, scale_O), expected_RO, 4 * torch.finfo(dtype).eps):
            return False
    return True


def _can_block(weight_OI: Tensor) -> bool:
    """Whether this build of torch and this processor have oneDNN's product for the type of the weight."""
    if type(weight_OI) is not Tensor or weight_OI.device.type != "cpu" or not torch.backends.mkldnn.is_available():
        return False
    if not hasattr(torch.ops.mkldnn, "_linear_pointwise"):
        return False
    if weight_OI.dtype == torch.bfloat16:
        return torch.ops.mkldnn._is_mkldnn_bf16_supported()
    return weight_OI.dtype == torch.float32


def _has_int8_kernel(x: Tensor) -> bool:
    """The processor's kernel reads bfloat16 rows 16 numbers at a time; its fp32 form is slower than expanding."""
    return x.device.type == "cpu" and x.dtype == torch.bfloat16 and x.shape[-1] % 16 == 0


def _round_to_int8(weight_OI: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """(int8 weight, scale per output feature): the largest magnitude of a row becomes 127."""
    scale_O = weight_OI.float().abs().amax(dim=1).clamp_min(torch.finfo(torch.float32).tiny) / 127
    rounded_OI = (weight_OI.float() / scale_O.unsqueeze(1)).round().to(torch.int8)
    return rounded_OI.contiguous(), scale_O.to(dtype)


class PackedSlot:
    """The place of one packed map in a module: filled for decoding, empty otherwise.

    Attributes:
        active: the packed map while decoding, else None.
    """

    def __init__(self) -> None:
        self.active: PackedLinear | None = None
        self._watched = False
        self._kept: dict[WeightFormat, tuple[tuple[object, ...] | None, PackedLinear]] = {}

    def fill(
        self,
        weights_OI: Sequence[Tensor],
        biases_O: Sequence[Tensor | None],
        form: WeightFormat,
        bias_scale: float = 1.0,
    ) -> None:
        """Activates the map of these weights, joined along O; what was packed before serves while it is current.

        Raises:
            NonFiniteError: for weights on a CPU that are not finite: attention there makes numbers of a NaN.
        """
        given = [tensor for tensor in (*weights_OI, *biases_O) if tensor is not None]
        key = tuple(_identity(tensor) for tensor in given)
        self._watched = all(_has_digest(tensor) for tensor in given)
        known, packed = self._kept.get(form, (None, None))
        if packed is None or known != key:
            weight = _join([weight.detach() for weight in weights_OI])
            biases = [bias.detach() for bias in biases_O if bias is not None]
            bias = _join(biases) if biases else None
            if bias is not None and bias_scale != 1.0:
                bias = bias * bias_scale
            if weight.device.type == "cpu" and not (is_finite(weight) and (bias is None or is_finite(bias))):
                raise NonFiniteError(f"weights of shape {tuple(weight.shape)} or their bias are not finite")
            fresh = PackedLinear(weight, bias, form, lenders=(*weights_OI, *biases_O))
            if packed is None or not packed.take_over(fresh):
                packed = fresh
            self._kept[form] = key, packed
        self.active = packed

    def fill_from(self, linears: Sequence[nn.Linear], form: WeightFormat) -> None:
        """`fill` with the parameters of modules; empty if one of them does more than its linear map."""
        if not all(is_plain(linear, nn.Linear) for linear in linears):
            self.unpack(keep=False)
            return
        self.fill([linear.weight for linear in linears], [linear.bias for linear in linears], form)

    def unpack(self, keep: bool) -> None:
        """Deactivates; `keep` saves the work if the same parameters decode again in the same format.

        Where no digest tells whether they are the same, what is kept is the memory: it is filled anew next time. That
        waits for no device, and takes about as long as reading the parameters once, for a whole walk.
        """
        self._kept = {
            form: (key if self._watched else None, packed)
            for form, (key, packed) in self._kept.items()
            if keep and packed is self.active
        }
        self.active = None


def _layout(tensor: Tensor) -> tuple[object, ...]:
    return tensor.device, tensor.dtype, tuple(tensor.shape), tensor.stride()


def _join(parts: Sequence[Tensor]) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(list(parts))


def _has_digest(tensor: Tensor) -> bool:
    """Whether its numbers can be looked at without waiting: on a GPU that would be for the device."""
    return tensor.is_cpu and type(tensor) in (Tensor, nn.Parameter)


def _identity(tensor: Tensor) -> tuple[object, ...]:
    """Changes with every in-place write, move or replacement of a parameter.

    Writes past autograd, to `tensor.data`, change no version: a digest of the numbers notices them.
    """
    version = -1 if tensor.is_inference() else tensor._version
    number = native.digest(tensor) if _has_digest(tensor) else None
    return tensor.data_ptr(), version, number, *_layout(tensor)
