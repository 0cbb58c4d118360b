"""Puts the report together: reads the runs, draws, writes one page."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any

from markupsafe import Markup
from omegaconf import OmegaConf

from data.images.decoding import decode_rgb
from runtime.pages.page import embedded_png, write_page
from training.report.curves import QUALITY, SPEED, by_depth, overlaid, scores
from training.report.hints import hints
from training.report.run_record import RunRecord
from training.stages.stage1 import Stage1Config
from training.stages.stage2 import Stage2Config

REPORT_FILE = "report.html"
PICTURES, PICTURE_WIDTH = 5, 720  # of a strip; pixels of a picture at most
SCHEMAS: dict[str, Any] = {"stage1": Stage1Config, "stage2": Stage2Config}
PICTURE_TITLES = {
    "reconstruction_coarse_to_fine": "Reconstructions from the first 1, 2, ... codes",
    "reconstruction_single_depths": "What the codes of each depth decode to alone",
    "samples": "Samples",
}


def write_report(runs: Sequence[RunRecord], path: Path) -> None:
    """Writes the page on some runs."""
    runs = _shortly_named(runs)
    write_page(
        path,
        Path(__file__).with_name("report.html"),
        runs=runs,
        made=datetime.now().strftime("%Y-%m-%d %H:%M"),
        status=[[label, *(show(run) for run in runs)] for label, show in STATUS.items()],
        hints=[(run.name, hints(run)) for run in runs],
        quality=[*scores(runs), *overlaid(runs, QUALITY)],
        depths=[(run.name, by_depth(run)) for run in runs],
        speed=overlaid(runs, SPEED),
        strips=[(run.name, _strips(run)) for run in runs],
        events=[(run.name, [_event(event) for event in run.events]) for run in runs],
        settings=_settings(runs),
        environment=[(run.name, _environment(run)) for run in runs],
        commands=[(run.name, run.commands()) for run in runs],
    )


def _shortly_named(runs: Sequence[RunRecord]) -> list[RunRecord]:
    """Runs of one config are told apart by their times."""
    configs = {run.run_dir.parent for run in runs}
    if len(runs) < 2 or len(configs) > 1:
        return list(runs)
    return [replace(run, name=run.run_dir.name) for run in runs]


def _step(run: RunRecord) -> str:
    return f"{run.step} of {run.total_steps}" if run.total_steps is not None else str(run.step)


def _best(run: RunRecord) -> str:
    return f"{run.best['metric']} {run.best['value']:.4g}" if {"metric", "value"} <= run.best.keys() else "-"


def _now(key: str, pattern: str) -> Callable[[RunRecord], str]:
    def show(run: RunRecord) -> str:
        value = run.now(key)
        return "-" if value is None else pattern.format(value)

    return show


# The rows of the first table.
STATUS: dict[str, Callable[[RunRecord], str]] = {
    "stage": lambda run: run.stage.removeprefix("stage"),
    "status": lambda run: run.status,
    "step": _step,
    "time left": lambda run: run.eta or "-",
    "best score": _best,
    "images/s": _now("timing/images_per_second", "{:,.1f}"),
    "MFU": _now("timing/mfu", "{:.1%}"),
    "waiting for data": _now("timing/data_wait_share", "{:.1%}"),
    "memory, GiB": _now("timing/peak_memory_gib", "{:.2f}"),
}


def _settings(runs: Sequence[RunRecord]) -> list[list[str]]:
    """(Key, default, value of each run) of every setting that is not the default in some run."""
    values = [dict(_flat(run.config)) for run in runs]
    defaults = [dict(_flat(OmegaConf.to_container(OmegaConf.structured(SCHEMAS[run.stage])))) for run in runs]
    rows = []
    for key in dict.fromkeys(key for config in values for key in config):
        own = [config.get(key) for config in values]
        usual = [config.get(key) for config in defaults]
        if any(value != default for value, default in zip(own, usual, strict=True) if value is not None):
            rows.append([key, _text(next((value for value in usual if value is not None), None)), *map(_text, own)])
    return rows


def _flat(node: Any, prefix: str = "") -> list[tuple[str, Any]]:
    if not isinstance(node, Mapping):
        return [(prefix.removesuffix("."), node)]
    return [pair for name, value in node.items() for pair in _flat(value, f"{prefix}{name}.")]


def _text(value: Any) -> str:
    return "-" if value is None or value == "???" else str(value)


def _event(event: Mapping[str, Any]) -> list[str]:
    at = event.get("time")
    when = datetime.fromtimestamp(at).strftime("%Y-%m-%d %H:%M:%S") if isinstance(at, (int, float)) else ""
    return [str(event["step"]), when, str(event["kind"]), str(event["text"])]


def _environment(run: RunRecord) -> list[list[str]]:
    last = {**run.launch, **(run.starts[-1] if run.starts else {})}
    rows = [["directory", str(run.run_dir)]]
    names = {"commit": "git commit", "torch": "PyTorch", "python": "Python", "device": "device", "host": "host"}
    rows += [[label, str(last[name])] for name, label in names.items() if last.get(name)]
    rows.append(["processes", str(last.get("world_size", "-"))])
    return rows


def _strips(run: RunRecord) -> list[tuple[str, list[tuple[Markup, int]]]]:
    """(Title, (picture, step) over the run) of every kind of picture."""
    return [
        (
            PICTURE_TITLES.get(name, name),
            [(_picture(file, f"{PICTURE_TITLES.get(name, name)} after step {step}"), step) for step, file in files],
        )
        for name, files in run.pictures(PICTURES).items()
    ]


def _picture(file: Path, alt: str) -> Markup:
    picture = decode_rgb(file.read_bytes())
    if picture.width > PICTURE_WIDTH:
        picture = picture.resize((PICTURE_WIDTH, max(1, picture.height * PICTURE_WIDTH // picture.width)))
    encoded = io.BytesIO()
    picture.save(encoded, "PNG")
    return embedded_png(encoded.getvalue(), alt)
