"""The flags of the scoring scripts, and the settings that they become."""

from __future__ import annotations

import argparse

from evaluation.networks.feature_networks import FEATURES
from evaluation.resizes import RESIZES
from scoring.settings import CLASSIFIER_CACHE, PUBLISHED_CLIP, ClipSettings, FeatureSettings


def add_scoring_flags(parser: argparse.ArgumentParser) -> None:
    """The flags that choose the feature network."""
    group = parser.add_argument_group("features of the scores")
    group.add_argument(
        "--features",
        choices=FEATURES,
        default="inception",
        help="inception: the FID network (inception768, ...: its earlier layers); classifier: a small network trained "
        "on the data set itself; efficientnet-lite0, clip, dinov2: of packages; also clip:NAME, timm:NAME "
        "(docs/evaluation.md; default: inception)",
    )
    group.add_argument(
        "--features-weights",
        default=None,
        help="its weight file (default: $FID_INCEPTION_WEIGHTS, then torch hub's cache)",
    )
    group.add_argument(
        "--features-resize",
        choices=tuple(RESIZES),
        default="bilinear",
        help="how images reach Inception's 299 pixels; part of every metric's name (default: bilinear)",
    )
    group.add_argument(
        "--features-cache",
        default=CLASSIFIER_CACHE,
        help=f"where trained classifiers and measured references are kept (default: {CLASSIFIER_CACHE})",
    )
    group.add_argument(
        "--json",
        action="store_true",
        help="print the result line, which goes to a file in any case, on a terminal too (elsewhere it is always last)",
    )


def feature_settings_from(args: argparse.Namespace) -> FeatureSettings:
    """The settings of what `add_scoring_flags` gave."""
    return FeatureSettings(args.features, args.features_weights, args.features_resize, args.features_cache)


def add_clip_flags(parser: argparse.ArgumentParser) -> None:
    """The flags that choose the CLIP network."""
    group = parser.add_argument_group("CLIP")
    group.add_argument(
        "--clip-model",
        default=PUBLISHED_CLIP,
        metavar="NAME[/TAG]",
        help=f"of open_clip, for whatever needs CLIP (default: {PUBLISHED_CLIP})",
    )
    group.add_argument("--clip-weights", metavar="FILE", help="its weights, instead of those of the tag")


def clip_settings_from(args: argparse.Namespace) -> ClipSettings:
    """The settings of what `add_clip_flags` gave."""
    return ClipSettings(args.clip_model, args.clip_weights)
