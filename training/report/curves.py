"""The plots of a report: one table of what is drawn, several runs in one plot, depths in plots of their own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

from runtime.pages.plots import LinePlot, Points
from training.report.run_record import RunRecord


@dataclass(frozen=True)
class Plot:
    """A row of the table.

    Attributes:
        title: of the plot.
        keys: metric -> what its curve is called; validation is dashed.
        log_y: logarithmic.
    """

    title: str
    keys: dict[str, str]
    log_y: bool = False


QUALITY = (
    Plot("Loss", {"train/loss_total": "", "train/loss": ""}, log_y=True),
    Plot("Reconstruction loss", {"train/loss_recon": "", "val/loss_recon": "validation"}, log_y=True),
    Plot("Perceptual loss", {"train/loss_perceptual": "", "val/loss_perceptual": "validation"}, log_y=True),
    Plot("Commitment loss", {"train/loss_latent": "", "val/loss_latent": "validation"}, log_y=True),
    Plot(
        "Negative log-likelihood (nats per code)",
        {"train/nll": "", "val/nll": "validation", "val/unigram_nll": "unigrams, validation"},
    ),
    Plot("Accuracy", {"train/accuracy": "", "val/accuracy": "validation"}),
    Plot("Discriminator: real minus fake", {"train/disc_gap": ""}),
    Plot("Weight of the adversarial loss", {"train/g_weight": ""}, log_y=True),
    Plot("Gradient norm", {"train/grad_norm": "", "train/disc_grad_norm": "discriminator"}, log_y=True),
    Plot("Learning rate", {"train/lr": ""}),
)
BY_DEPTH = (
    Plot("Share of the codes used", {"train/used_fraction_by_depth": ""}),
    Plot("Perplexity of the codes", {"train/perplexity_by_depth": ""}),
    Plot("Codes restarted in an interval", {"train/restarts_by_depth": ""}),
    Plot("Reconstruction error by number of codes", {"val/recon_mse_by_depth": ""}, log_y=True),
    Plot("Loss of each depth", {"train/loss_by_depth": ""}),
    Plot("Accuracy of each depth", {"val/accuracy_by_depth": ""}),
    Plot("Negative log-likelihood of each depth", {"val/nll_by_depth": ""}),
)
SPEED = (
    Plot("Images per second", {"timing/images_per_second": ""}),
    Plot("MFU", {"timing/mfu": ""}),
    Plot("Share of the time waiting for data", {"timing/data_wait_share": ""}),
    Plot("Peak memory (GiB)", {"timing/peak_memory_gib": ""}),
)
# Kinds of events, and what the legend calls them.
MARKED = {
    "resume": "resumed",
    "stop": "stopped",
    "error": "error",
    "spike": "loss spike",
    "collapse": "collapse",
    "skipped step": "skipped step",
    "worker death": "worker death",
}


def overlaid(runs: Sequence[RunRecord], plots: Sequence[Plot]) -> list[Markup]:
    """One plot for each row, with the curves of all runs; a single run's with its events."""
    drawn = []
    for plot in plots:
        curves: dict[str, Points] = {}
        dashed, colors = [], {}
        for number, run in enumerate(runs):  # a run has one colour in all plots
            for key, kind in plot.keys.items():
                label = " ".join(part for part in (run.name if len(runs) > 1 else "", kind) if part) or "training"
                if points := run.curve(key):
                    curves[label] = points
                    dashed += [label] if "validation" in kind else []
                    colors[label] = number + len(runs) * (kind not in ("", "validation"))
        events = marked(runs[0]) if len(runs) == 1 else {}
        drawn.append(LinePlot(plot.title, curves, log_y=plot.log_y, dashed=dashed, colors=colors, events=events).svg())
    return drawn


def by_depth(run: RunRecord, plots: Sequence[Plot] = BY_DEPTH) -> list[Markup]:
    """The plots of one run with a curve for each depth."""
    drawn = []
    for plot in plots:
        (key,) = plot.keys
        drawn.append(LinePlot(plot.title, run.curves_by_depth(key), log_y=plot.log_y).svg())
    return drawn


def scores(runs: Sequence[RunRecord]) -> list[Markup]:
    """The scores while training, one plot for each name."""
    names = sorted({name for run in runs for line in run.lines for name in line if name.startswith("score/")})
    plots = [Plot(name.removeprefix("score/"), {name: ""}) for name in names if name != "score/num_images"]
    return overlaid(runs, plots)


def marked(run: RunRecord) -> dict[str, list[float]]:
    """Legend -> steps of the events of a run that a curve can be read by."""
    return {
        label: steps
        for kind, label in MARKED.items()
        if (steps := [float(event["step"]) for event in run.events if event["kind"] == kind])
    }
