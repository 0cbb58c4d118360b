"""A small codec of waves: strided convolutions, residual codes per frame, and any number of them to decode from.

Waves are synthetic: notes of a few partials that fade. The quantizer works in the layout of convolutions (B, C, T), and
in training a random number of its last levels is left out, so that one model serves every bit rate: the first codes of
a frame alone are a coarser wave (SoundStream, Zeghidour et al., 2021, 2107.03312).

`python -m examples.wave_codec [--steps 2000] [--out FOLDER]`: trains, prints the error per number of codes as one JSON
line, and writes a wave as it was and from 1, 2, ... D codes as .npy files.

Legend: B batch, S samples of a wave, C channels, T frames, D code depth, K codes per depth.
"""

from __future__ import annotations

import argparse
import json
import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from rqstack.printable import printable
from rqstack.quantizers import InLayout, QuantizerOutput, ResidualVectorOptions, ResidualVectorQuantizer

RATE = 8000  # samples per second


@dataclass(frozen=True)
class Settings:
    """Of model and training; a frame has the product of the strides as samples."""

    depth: int = 6
    num_codes: int = 64
    channels: int = 32
    strides: tuple[int, ...] = (4, 4, 4)
    samples: int = 2048
    batch_size: int = 16
    steps: int = 2000
    lr: float = 2e-3
    commitment: float = 0.25
    seed: int = 0

    @property
    def bits_per_second(self) -> float:
        """With all codes."""
        return RATE / math.prod(self.strides) * self.depth * math.log2(self.num_codes)


def draw_waves(number: int, samples: int, generator: torch.Generator) -> Tensor:
    """(B, 1, S): a note each, with three partials, between 100 and 800 Hz, that fades at a rate of its own."""
    seconds_S = torch.arange(samples) / RATE
    draws = torch.rand(number, 8, generator=generator)
    pitch_B1 = 100 * 8 ** draws[:, :1]
    fade_BS = torch.exp(-8 * draws[:, 1:2] * seconds_S)
    waves_BS = torch.zeros(number, samples)
    for partial in (1, 2, 3):
        strength_B1, phase_B1 = draws[:, 1 + partial, None] / partial, draws[:, 4 + partial, None]
        waves_BS += strength_B1 * torch.sin(2 * math.pi * (partial * pitch_B1 * seconds_S + phase_B1))
    return (0.5 * fade_BS * waves_BS).unsqueeze(1)


class WaveCodec(nn.Module):
    """Wave (B, 1, S) -> codes (B, T, D) -> wave."""

    def __init__(self, settings: Settings):
        super().__init__()
        width = settings.channels
        down: list[nn.Module] = []
        up: list[nn.Module] = []
        for number, stride in enumerate(settings.strides):
            before = width if number else 1
            down += [nn.Conv1d(before, width, 2 * stride, stride, stride // 2), nn.GELU()]
            up = [nn.GELU(), nn.ConvTranspose1d(width, before, 2 * stride, stride, stride // 2), *up]
        self.encoder = nn.Sequential(*down, nn.Conv1d(width, width, 3, padding=1))
        self.decoder = nn.Sequential(nn.Conv1d(width, width, 3, padding=1), *up)
        levels = ResidualVectorQuantizer(
            width, settings.num_codes, settings.depth, ResidualVectorOptions(quantize_dropout=True)
        )
        self.quantizer = InLayout(levels, width, "channels_first")

    def forward(self, waves_B1S: Tensor) -> tuple[Tensor, QuantizerOutput]:
        """Waves given back from their codes, and the quantizer's result."""
        found: QuantizerOutput = self.quantizer(self.encoder(waves_B1S))
        return self.decoder(found.quantized), found

    def encode(self, waves_B1S: Tensor) -> Tensor:
        """Codes (B, T, D)."""
        return self.quantizer(self.encoder(waves_B1S)).codes

    def decode(self, codes_BTD: Tensor) -> Tensor:
        """Waves (B, 1, S) from all codes, or from the first of every frame (B, T, d)."""
        missing = len(self.quantizer.num_codes) - codes_BTD.shape[-1]
        return self.decoder(self.quantizer.decode(nn.functional.pad(codes_BTD, (0, missing), value=-1)))


def train(settings: Settings) -> WaveCodec:
    """A codec in eval mode; everything depends on the seed only."""
    torch.manual_seed(settings.seed)
    generator = torch.Generator().manual_seed(settings.seed)
    model = WaveCodec(settings)
    optimizer = torch.optim.AdamW(model.parameters(), settings.lr)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, settings.steps)
    for _ in range(settings.steps):
        waves_B1S = draw_waves(settings.batch_size, settings.samples, generator)
        restored_B1S, found = model(waves_B1S)
        # The error as a share of the power, so that the two parts keep their proportion whatever the loudness.
        error = (restored_B1S - waves_B1S).square().mean() / waves_B1S.square().mean()
        loss = error + settings.commitment * found.loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        model.quantizer.update_codebook()
    return model.eval()


@torch.no_grad()
def error_by_depth(model: WaveCodec, waves_B1S: Tensor) -> list[float]:
    """Mean squared error from 1, 2, ... D codes per frame, as a share of the waves' own power."""
    codes_BTD = model.encode(waves_B1S)
    power = waves_B1S.square().mean()
    counts = range(1, codes_BTD.shape[-1] + 1)
    return [float((model.decode(codes_BTD[..., :count]) - waves_B1S).square().mean() / power) for count in counts]


@torch.no_grad()
def write_example(model: WaveCodec, wave_1S: Tensor, folder: Path) -> None:
    """The wave as it was and from every number of codes, as fp32 .npy files."""
    folder.mkdir(parents=True, exist_ok=True)
    codes_1TD = model.encode(wave_1S.unsqueeze(0))
    np.save(folder / "wave.npy", wave_1S[0].numpy())
    for count in range(1, codes_1TD.shape[-1] + 1):
        np.save(folder / f"wave_from_{count}_codes.npy", model.decode(codes_1TD[..., :count])[0, 0].numpy())


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(
        prog="python -m examples.wave_codec",
        description=(__doc__ or "").split("\n")[0],
        epilog="example: python -m examples.wave_codec --steps 200 --out waves",
        allow_abbrev=False,
    )
    parser.add_argument("--steps", type=int, default=Settings.steps, help="of training")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="folder for one wave from every number of codes")
    flags = parser.parse_args()
    if flags.steps < 1 or flags.seed < 0:
        parser.error(f"--steps={flags.steps} must be at least 1, --seed={flags.seed} at least 0")
    settings = Settings(steps=flags.steps, seed=flags.seed)
    model = train(settings)
    waves_B1S = draw_waves(64, settings.samples, torch.Generator().manual_seed(settings.seed + 1))  # not seen before
    if flags.out is not None:
        write_example(model, waves_B1S[0], flags.out)
    errors = [round(error, 5) for error in error_by_depth(model, waves_B1S)]
    line = {"steps": flags.steps, "bits_per_second": settings.bits_per_second, "relative_error_by_codes": errors}
    print(printable(json.dumps(line)))


if __name__ == "__main__":
    main()
