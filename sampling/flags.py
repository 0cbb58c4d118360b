"""The flags of the sampling scripts, and the settings that they become."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from rqtransformer.fast.weight_format import WEIGHT_FORMATS
from runtime.precision import PRECISIONS
from sampling.choices import FORMATS

# the rest comes with torch, which is imported after the flags are read
if TYPE_CHECKING:
    import torch

    from sampling.sampler import SamplingSettings

PRECISION_HELP = (
    "of stage 2 (default: bf16 on a GPU); bf16 by name, on a GPU, is for the pixels too, which are fp32 otherwise"
)


def add_sampling_flags(parser: argparse.ArgumentParser) -> None:
    """The two checkpoints, how samples are drawn from them, and where they go."""
    models = parser.add_argument_group("models")
    models.add_argument("-a", "--model-ar-path", required=True, help="stage-2 run, snapshot or published checkpoint")
    models.add_argument("-v", "--model-vqvae-path", required=True, help="stage-1 run, snapshot or published checkpoint")
    models.add_argument("--ema", action="store_true", help="use the averaged weights of stage 2")
    draw = parser.add_argument_group("drawing")
    draw.add_argument("-t", "--temp", type=float, nargs="+", help="temperature, one or one per depth")
    draw.add_argument("--top-k", type=int, nargs="+", help="one or one per depth; default: as the checkpoint says")
    draw.add_argument("--top-p", type=float, nargs="+", help="one or one per depth; default: as the checkpoint says")
    draw.add_argument(
        "--cfg-scale",
        type=guidance,
        metavar="SCALE",
        help="classifier-free guidance: a number (1 is the plain model), or linear:SCALE, cosine:SCALE "
        "(from 1 at the first position to SCALE at the last)",
    )
    draw.add_argument(
        "--weights",
        choices=WEIGHT_FORMATS,
        default="dense",
        help="of stage 2 while sampling; int8: rounded, one scale per output feature",
    )
    draw.add_argument("-bs", "--batch-size", type=int, default=100, help="per process (default: 100)")
    output = parser.add_argument_group("what is written")
    output.add_argument("--save-dir", help="where the samples go (default: beside the stage-2 checkpoint)")
    output.add_argument("--format", choices=FORMATS, default="png", help="of the saved images (default: png)")
    draw.add_argument("--precision", choices=PRECISIONS, default="auto", help=PRECISION_HELP)
    output.add_argument(
        "--no-tensorboard",
        action="store_const",
        const=(),
        default=("tensorboard",),
        dest="loggers",
        help="no TensorBoard events",
    )
    output.add_argument(
        "--no-stats-saving",
        action="store_false",
        dest="score",
        help="save the images only: no features, no statistics, no scores",
    )


def guidance(text: str) -> float | str:
    """A number as a number; a schedule's name and scale as they are, for `sample` to judge."""
    try:
        return float(text)
    except ValueError:
        return text


def pixel_dtype_from(args: argparse.Namespace, device: torch.device) -> torch.dtype | None:
    """Number format of the decoder to pixels: that of the weights, unless bf16 was asked for by name on a GPU."""
    import torch

    return torch.bfloat16 if args.precision == "bf16" and device.type == "cuda" else None


def pixel_facts(pixel_dtype: torch.dtype | None) -> dict[str, str]:
    """What a result line says about it; nothing of what is as published."""
    return {} if pixel_dtype is None else {"pixels": str(pixel_dtype).removeprefix("torch.")}


def sampling_settings_from(args: argparse.Namespace) -> SamplingSettings:
    """The settings of what `add_sampling_flags` and `--seed` gave."""
    from sampling.sampler import SamplingSettings

    return SamplingSettings(
        temperature=args.temp,
        top_k=args.top_k,
        top_p=args.top_p,
        cfg_scale=args.cfg_scale,
        weight_format=args.weights,
        seed=args.seed,
        batch_size=args.batch_size,
    )
