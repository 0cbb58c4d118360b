"""Result lines: what they say beside the metrics, and where they go."""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from evaluation.protocol import with_detail
from evaluation.references.reference_files import Reference
from runtime.atomic import write_text_atomically
from runtime.errors import UserError, say, warn

BY_FREQUENCY = "frequencies"  # what `classes` says of samples drawn as often as the training images
WITHOUT_REFERENCE = ("metrics", "num_images", "references", "features", "warnings")


def file_part(features: str) -> str:
    """The name of a feature network as a part of a file name."""
    return re.sub(r"[^\w.-]+", "-", features)


def reference_facts(reference: Reference) -> dict[str, Any]:
    """What a result line says about the reference beside its name: source, number of images, hash."""
    return {"source": reference.source, "num_images": reference.moments.num or None, "digest": reference.digest}


def named_by_sampling(line: Mapping[str, Any]) -> dict[str, Any]:
    """The line with names that say how the classes of the samples were drawn, where they were not drawn in turn."""
    if line["sampling"].get("classes") != BY_FREQUENCY:
        return dict(line)
    return {**line, "metrics": {by_frequency(name): value for name, value in line["metrics"].items()}}


def by_frequency(name: str) -> str:
    """The name of a metric of samples that have each class as often as the training images."""
    return with_detail(name, "classfreq")


def line_of_captions(line: Mapping[str, Any], facts: Mapping[str, Any]) -> dict[str, Any]:
    """The result line of images that were compared with nothing but their captions."""
    return {**{name: line[name] for name in WITHOUT_REFERENCE}, **facts, "clip": line["clip"]}


def check_target(path: Path) -> Path:
    """The file that a result is to be written to.

    Raises:
        UserError: there it cannot be written: asked before anything is computed.
    """
    if path.is_dir():
        raise UserError(f"--out {path} is a folder; name a file in it")
    folder = next(parent for parent in path.absolute().parents if parent.exists())
    if not folder.is_dir() or not os.access(folder, os.W_OK):
        what = "cannot be written" if folder.is_dir() else "is no folder"
        raise UserError(f"the result cannot go to {path}: {folder} {what}; --out FILE says where else")
    return path


def write_result(path: Path, line: Mapping[str, Any], json_on_screen: bool = False) -> None:
    """Writes the result line as JSON, and prints its warnings and a readable table.

    Who reads the output from a program finds the line itself at its end, as ever. People have it in the file: on a
    terminal it is printed where `json_on_screen` asks for it.
    """
    text = json.dumps(line)
    write_text_atomically(path, text + "\n")
    for warning in line.get("warnings", ()):
        warn(warning)
    width = max((len(name) for name in line["metrics"]), default=0)
    say(f"{line['num_images']} images, features {line['features']['name']}, {line['seconds']:.1f} s")
    for name, value in line["metrics"].items():
        say(f"  {name:<{width}}  {value:.4f}")
    say(f"result line: {path}")
    if json_on_screen or not sys.stdout.isatty():
        say(text)
