"""rFID: how far reconstructions are from the originals, `python compute_rfid.py --split val --vqvae CHECKPOINT`.

The reference is the same split, unreconstructed; the split is part of the metric's name. PSNR and SSIM are measured on
the way, LPIPS where VGG16's weights are at hand; `--per-depth` does all for the first 1, 2, ..., D codes. The result
goes beside the checkpoint (`rfid_<split>_<features>.json`) and to the console.
"""

import argparse
from typing import Any

from data.config import dataset_words
from runtime.cli import ProcessSettings, build_parser, exit_in_order
from runtime.errors import UserError, say
from scoring.flags import add_scoring_flags, feature_settings_from


def parse() -> argparse.Namespace:
    parser = build_parser(
        "Reconstruction FID of an RQ-VAE on the data set of its configuration.",
        "python compute_rfid.py --vqvae runs/digits-rqvae-4x4x4/TIME --split val --features classifier",
        dataset_words("dataset."),
    )
    parser.add_argument("--vqvae", required=True, help="stage-1 run, snapshot or published checkpoint")
    parser.add_argument("--split", default="val", help="train or val (default: val)")
    parser.add_argument("-bs", "--batch-size", type=int, default=100, help="per process (default: 100)")
    parser.add_argument("--ema", action="store_true", help="use the averaged weights")
    parser.add_argument("--depth", type=int, default=None, help="reconstruct from the first DEPTH codes only")
    parser.add_argument("--per-depth", action="store_true", help="also from the first 1, 2, ..., D codes")
    add_scoring_flags(parser)
    return parser.parse_args()


def main(args: argparse.Namespace) -> None:
    # after the flags are read: `--help` does not wait for torch
    from evaluation.scores import Origin
    from rqstack.snapshots import weights_digest
    from rqvae import load_rqvae
    from sampling.trained_models import check_weights, config_beside, resolve_checkpoint
    from scoring.reconstruction_scores import find_perceptual, score_reconstructions
    from scoring.result_lines import file_part, reference_facts, write_result
    from scoring.scoring_data import ScoringData, split_name
    from training.stages.stage1 import Stage1Config

    path, split = resolve_checkpoint(args.vqvae), split_name(args.split)
    if args.per_depth and args.depth is not None:
        raise UserError("--depth and --per-depth exclude each other")
    config = config_beside(path, Stage1Config, args.overrides)
    env = ProcessSettings.from_flags(args).join()
    model = load_rqvae(path, ema=args.ema, device=env.device)
    check_weights(model, path)
    deepest = len(model.quantizer.num_codes)
    depth = deepest if args.depth is None else args.depth
    if not 1 <= depth <= deepest:
        raise UserError(f"--depth {args.depth} is not in 1..{deepest}")
    settings = feature_settings_from(args)
    data = ScoringData(config.dataset, args.batch_size, env, config.experiment.num_workers, cache=settings.cache)
    extractor = data.features(settings)
    reference = data.reference(split, extractor)
    perceptual, missing = find_perceptual(data.split(split).resolution, env.device)
    digest = weights_digest(model)
    lines = {
        codes: score_reconstructions(
            model,
            data,
            extractor,
            reference,
            codes,
            perceptual,
            Origin(args.seed, {"codes": codes, "ema": args.ema}, digest),
        )
        for codes in (range(1, deepest + 1) if args.per_depth else [depth])
    }
    data.report_unreadable()
    if env.is_main:
        line = lines[depth] | {"dataset": config.dataset.name, "reference": reference_facts(reference)}
        if missing is not None:
            line["warnings"] = [*line["warnings"], missing]
        if args.per_depth:
            print_curve(lines)
            line["per_depth"] = [{"codes": codes, "metrics": found["metrics"]} for codes, found in lines.items()]
        directory = path if path.is_dir() else path.parent
        write_result(directory / f"rfid_{split}_{file_part(args.features)}.json", line, args.json)


def print_curve(lines: dict[int, dict[str, Any]]) -> None:
    """One row for each number of codes."""
    kinds = [name.split("_")[0] for name in next(iter(lines.values()))["metrics"]]
    say("codes" + "".join(f"{kind:>12}" for kind in kinds))
    for codes, line in lines.items():
        say(f"{codes:>5}" + "".join(f"{value:>12.4f}" for value in line["metrics"].values()))


if __name__ == "__main__":
    with exit_in_order(ValueError, OSError):
        main(parse())
