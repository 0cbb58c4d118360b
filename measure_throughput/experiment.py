"""What is measured. Settings alone: their description is the help of the command, which does not wait for torch."""

from __future__ import annotations

import importlib.util
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from rqtransformer.fast.weight_format import WEIGHT_FORMATS

if TYPE_CHECKING:
    import torch

DTYPES = ("float32", "bfloat16", "float16")
PEERS = {"rq_transformer": "RQ-transformer"}  # module: package
PUBLISHED_SAMPLES = 1000  # drawn per loop
LOOP_SECONDS = 10.0  # after which a loop ends where `samples` is left to the program


WORDS = {
    "f=32": "downsampling factor of the tokenizer",
    "d=4": "code depth",
    "c=16384": "codebook size",
    "model=huge": "preset of the transformer",
    "batch_size=50": "samples drawn together",
    "n_loop=6": "timed loops",
    "warmup=1": "of them, the first ones that do not count",
    "samples=0": "of a loop; 0: one batch on a CPU, at least 1,000, as published, on a GPU, where a loop is cut off "
    "after 10 seconds, at the end of a batch; a number that is given is drawn to the end",
    "device=auto": "auto: a GPU where there is one",
    "dtype=auto": f"{', '.join(DTYPES)}; auto: bfloat16 on a GPU, float32 on a CPU",
    "weights=dense": f"of the transformer: {', '.join(WEIGHT_FORMATS)}",
    "compile=false": "the decoder to pixels runs through torch.compile",
    "decode_batch=0": "images decoded together; 0 fits them to a memory budget",
    "peer=NAME": f"another package whose generate draws codes of the same shape, width and layers: {', '.join(PEERS)}",
}
"""The settings with their defaults, for `--help`."""


@dataclass
class Experiment:
    """What is measured; the field names are the published ones, and `WORDS` says what each is."""

    f: int = 32
    model: str = "huge"
    d: int = 4
    c: int = 16384
    batch_size: int = 50
    n_loop: int = 6
    warmup: int = 1
    samples: int = 0
    device: str = "auto"
    dtype: str = "auto"
    weights: str = "dense"
    compile: bool = False
    decode_batch: int = 0
    peer: str | None = None

    def check(self) -> None:
        """ValueError in one line for values that cannot be measured."""
        import torch

        from measure_throughput import presets

        presets.check(self.f, self.d, self.c, self.model)
        if not 0 <= self.warmup < self.n_loop:
            raise ValueError(f"warmup={self.warmup} must be at least 0 and below n_loop={self.n_loop}")
        if self.batch_size < 1 or min(self.samples, self.decode_batch) < 0:
            raise ValueError(
                f"batch_size={self.batch_size} must be at least 1, samples={self.samples} and "
                f"decode_batch={self.decode_batch} at least 0"
            )
        if self.weights not in WEIGHT_FORMATS:
            raise ValueError(f"weights={self.weights!r} is not one of {', '.join(WEIGHT_FORMATS)}")
        if self.dtype not in ("auto", *DTYPES):
            raise ValueError(f"dtype={self.dtype!r} is not one of auto, {', '.join(DTYPES)}")
        if self.peer is not None and self.peer not in PEERS:
            raise ValueError(f"peer={self.peer!r} is not one of {', '.join(PEERS)}")
        if self.peer is not None and importlib.util.find_spec(self.peer) is None:
            raise ValueError(f"peer={self.peer}: install {PEERS[self.peer]} first")
        if self.torch_device.type == "cuda" and (self.torch_device.index or 0) >= torch.cuda.device_count():
            raise ValueError(f"device={self.device!r}: there are {torch.cuda.device_count()} GPUs here")

    @property
    def torch_device(self) -> torch.device:
        """The device, "auto" resolved."""
        import torch

        if self.device == "auto":
            return torch.device("cuda" if torch.cuda.is_available() else "cpu")
        try:
            return torch.device(self.device)
        except RuntimeError as error:
            raise ValueError(f"device={self.device!r} is not a device, such as cpu or cuda:0") from error

    @property
    def torch_dtype(self) -> torch.dtype:
        """The type of the products, "auto" resolved."""
        import torch

        if self.dtype != "auto":
            return getattr(torch, self.dtype)
        return torch.bfloat16 if self.torch_device.type == "cuda" else torch.float32

    @property
    def case(self) -> str:
        """Short name of tokenizer and transformer."""
        from measure_throughput import presets

        side = presets.RESOLUTION // self.f
        return f"{self.model} {side}x{side}x{self.d} c={self.c}"

    @property
    def batches_per_loop(self) -> int:
        """Batches drawn in one timed loop, if nothing cuts it off."""
        on_gpu = self.torch_device.type == "cuda"
        return max(1, math.ceil((self.samples or (PUBLISHED_SAMPLES if on_gpu else 1)) / self.batch_size))

    @property
    def loop_seconds(self) -> float:
        """After which a loop begins no further batch."""
        return math.inf if self.samples else LOOP_SECONDS
