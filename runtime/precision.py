"""Mixed precision: which number format the forward passes run in, and the loss scaling that fp16 needs."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

# the names are choices of a flag, which are read before torch is imported
if TYPE_CHECKING:
    import torch

PRECISIONS = ("auto", "fp32", "bf16", "fp16")


class Precision:
    """Autocast and loss scaling for one device.

    Args:
        name: one of `PRECISIONS`; `auto` is bf16 on a GPU (unless `amp` is False) and fp32 on a CPU.
        device: the device that the step runs on.
        amp: the published on/off switch; False asks `auto` for fp32.

    Raises:
        ValueError: for an unknown name, or fp16 on a CPU.
    """

    def __init__(self, name: str, device: torch.device, amp: bool | None = None) -> None:
        import torch

        if name not in PRECISIONS:
            raise ValueError(f"experiment.precision={name!r}: choose from {', '.join(PRECISIONS)}")
        if name == "auto":
            name = "bf16" if device.type == "cuda" and amp is not False else "fp32"
        if name == "fp16" and device.type != "cuda":
            raise ValueError("experiment.precision=fp16 needs a GPU; choose fp32 or bf16 on a CPU")
        self.name = name
        self.device = device
        self.dtype = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[name]

    @property
    def amp_dtype(self) -> torch.dtype | None:
        """The type to autocast to; None in fp32."""
        return None if self.name == "fp32" else self.dtype

    def autocast(self) -> contextlib.AbstractContextManager:
        """The context of every forward pass; does nothing in fp32."""
        import torch

        if self.name == "fp32":
            return contextlib.nullcontext()
        return torch.autocast(self.device.type, dtype=self.dtype)

    def scaler(self) -> torch.amp.GradScaler:
        """A gradient scaler; it passes everything through unless the format is fp16."""
        import torch

        return torch.amp.GradScaler(self.device.type, enabled=self.name == "fp16")
