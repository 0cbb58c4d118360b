"""Do feature networks see what a person sees? FID of blurred, noised and re-compressed images against the images.

For every data set and feature network the distance must rise with the strength of each distortion. efficientnet-lite0,
where it is installed, is also asked for the ImageNet class of the OpenMoji drawings that are called like one.
`python -m benchmarks.feature_distortion [--images 400] [--data-root DIR] [--output FILE]`: tables, then one JSON line.
"""

from __future__ import annotations

import argparse
import io
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms.v2 import functional as transforms

from data import DatasetConfig, build_dataset
from data.dataset import Captioned
from data.images.decoding import read_pixels
from evaluation.metrics.frechet import FrechetDistance
from evaluation.networks.feature_networks import FeatureExtractor
from evaluation.scores import metric_value, score_images
from evaluation.statistics import StreamingStatistics
from runtime.atomic import write_text_atomically
from runtime.cli import ArgumentParser
from runtime.distributed import DistEnv
from runtime.errors import exit_on_user_error
from scoring.scoring_data import ScoringData
from scoring.settings import FeatureSettings

BATCH_SIZE = 50
FEATURES = ("efficientnet-lite0", "classifier")
STRENGTHS: dict[str, tuple[float, ...]] = {"blur": (0.5, 1, 2), "noise": (8, 24, 64), "jpeg": (80, 40, 10)}
UNITS = {"blur": "sigma in pixels", "noise": "deviation of 255", "jpeg": "quality"}


def blurred(image_BCHW: Tensor, sigma: float) -> Tensor:
    """A Gaussian of this width in pixels."""
    return transforms.gaussian_blur(image_BCHW, [2 * round(3 * sigma) + 1] * 2, [sigma] * 2)


def noised(image_BCHW: Tensor, deviation: float) -> Tensor:
    """Gaussian noise, the same for every strength but for its size."""
    noise = torch.randn(image_BCHW.shape, generator=torch.Generator().manual_seed(0))
    return (image_BCHW + deviation * noise).round().clamp(0, 255).to(torch.uint8)


def recompressed(image_BCHW: Tensor, quality: float) -> Tensor:
    """Written as JPEG of this quality and read again."""
    return torch.stack([_recompressed(image_CHW, int(quality)) for image_CHW in image_BCHW])


def _recompressed(image_CHW: Tensor, quality: int) -> Tensor:
    file = io.BytesIO()
    Image.fromarray(image_CHW.permute(1, 2, 0).numpy()).save(file, format="JPEG", quality=quality)
    return torch.from_numpy(np.array(read_pixels(file.getvalue()).image)).permute(2, 0, 1)


DISTORTIONS: dict[str, Callable[[Tensor, float], Tensor]] = {
    "blur": blurred,
    "noise": noised,
    "jpeg": recompressed,
}


def distances(data: ScoringData, extractor: FeatureExtractor, num_images: int) -> dict[str, list[float]]:
    """FID of the distorted images against the same images as they are, by distortion and strength."""
    moments = StreamingStatistics(extractor.dim)
    for batch in data.spread_batches("val", num_images):
        moments.update(extractor(batch["image"])[0])
    original = moments.gaussian()

    def distorted(change: Callable[[Tensor, float], Tensor], strength: float) -> Iterator[dict[str, Tensor]]:
        for batch in data.spread_batches("val", num_images):
            yield {**batch, "image": change(batch["image"], strength)}

    found = {}
    for name, strengths in STRENGTHS.items():
        found[name] = [
            metric_value(
                score_images(
                    distorted(DISTORTIONS[name], strength),
                    [FrechetDistance(extractor, {"original": original})],
                    extractor,
                    num_images=original.num,
                ),
                "fid",
            )
            for strength in strengths
        ]
    return found


def rises(values: list[float]) -> bool:
    """Whether every value is above the one before, and the first above 0."""
    return all(low < high for low, high in zip([0.0, *values], values))


def named_drawings(extractor: FeatureExtractor) -> dict[str, Any] | None:
    """How often the network names an OpenMoji drawing as Unicode does, of those called like a class of ImageNet."""
    from torchvision.models import ResNet50_Weights

    classes = [name.lower() for name in ResNet50_Weights.DEFAULT.meta["categories"]]
    found = []
    for split in ("train", "val"):
        dataset = build_dataset(DatasetConfig(type="openmoji", resolution=224), split)
        assert isinstance(dataset, Captioned)
        captions = dataset.captions(range(len(dataset)))
        index = [number for number, caption in enumerate(captions) if caption.lower() in classes]
        image_BCHW = dataset.fetch(np.array(index), None)["image"]
        top_B5 = torch.cat([extractor(part)[1].topk(5).indices for part in image_BCHW.split(BATCH_SIZE)])
        found += [
            (
                captions[number],
                top_5.index(label) if (label := classes.index(captions[number].lower())) in top_5 else -1,
            )
            for number, top_5 in zip(index, top_B5.tolist(), strict=True)
        ]
    return {
        "drawings": len(found),
        "top1": sum(place == 0 for _, place in found) / len(found),
        "top5": sum(place >= 0 for _, place in found) / len(found),
        "named": sorted(caption for caption, place in found if place == 0),
    }


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """All data sets and networks whose files and packages are here; why not, of the others."""
    env = DistEnv(0, 1, 0, torch.device("cpu"), "none")
    configs = {
        "openmoji": DatasetConfig(type="openmoji", resolution=64),
        "fashion-mnist": DatasetConfig(type="fashion-mnist", root=args.data_root, resolution=32),
    }
    rows: list[dict[str, Any]] = []
    result: dict[str, Any] = {
        "benchmark": "feature_distortion",
        "strengths": STRENGTHS,
        "rows": rows,
        "imagenet_classes_of_drawings": None,
        "torch": torch.__version__,
    }
    for dataset, config in configs.items():
        for features in FEATURES:
            try:
                data = ScoringData(config, BATCH_SIZE, env, cache=args.features_cache)
                extractor = data.features(FeatureSettings(features, cache=args.features_cache))
                count = min(args.images, len(data.split("val")))
            except (ValueError, OSError) as error:
                rows.append({"dataset": dataset, "features": features, "not_run": str(error)})
                continue
            found = distances(data, extractor, count)
            row = {"dataset": dataset, "features": extractor.label, "images": count, "fid": found}
            rows.append(row | {"rises": {name: rises(values) for name, values in found.items()}})
            print(table(rows[-1:]), flush=True)
            if dataset == "openmoji" and not extractor.recognises_labels:
                result["imagenet_classes_of_drawings"] = named_drawings(extractor)
            result["holds"] = all(all(row["rises"].values()) for row in rows if "rises" in row)
            if args.output is not None:  # after every row: networks may take minutes to train
                write_text_atomically(args.output, json.dumps(result) + "\n")
    return result


def table(rows: list[dict[str, Any]]) -> str:
    """The rows in Markdown, a line for each distortion."""
    lines = ["| data | features | distortion | FID, weak to strong | rises |", "|---|---|---|---|---|"]
    for row in rows:
        if "not_run" in row:
            lines.append(f"| {row['dataset']} | {row['features']} | not run: {row['not_run']} | | |")
            continue
        for name, values in row["fid"].items():
            strengths = ", ".join(f"{strength:g}" for strength in STRENGTHS[name])
            shown = ", ".join(f"{value:.3g}" for value in values)
            answer = "yes" if row["rises"][name] else "no"
            lines.append(
                f"| {row['dataset']} | {row['features']} | {name} ({UNITS[name]} {strengths}) | {shown} | {answer} |"
            )
    return "\n".join(lines)


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    parser = ArgumentParser(
        prog="python -m benchmarks.feature_distortion",
        description=__doc__.splitlines()[0],
        example="python -m benchmarks.feature_distortion --images 100 --data-root fashion-mnist",
        takes_words=False,
    )
    parser.add_argument("--images", type=int, default=400, help="of the validation split, spread (default: 400)")
    parser.add_argument("--data-root", help="folder of Fashion-MNIST's files (see data/README.md)")
    parser.add_argument("--features-cache", default="runs/classifiers", help="default: runs/classifiers")
    parser.add_argument("--output", type=Path, help="also write the JSON line to this file")
    args = parser.parse_args(argv)
    if args.images < 2:
        parser.error(f"--images {args.images} must be at least 2")
    return args


def main(argv: list[str] | None = None) -> None:
    args = parse(argv)
    result = measure(args)
    print(table(result["rows"]))
    print(json.dumps(result))


if __name__ == "__main__":
    with exit_on_user_error(ValueError, OSError):
        main()
