"""What the demos' pages have in common: curves of a run, its newest pictures."""

from pathlib import Path

from markupsafe import Markup

from runtime.pages.page import embedded_png
from training.report.curves import Plot, by_depth, overlaid
from training.report.run_record import RunRecord

LOSSES = Plot("Losses", {"train/loss_recon": "reconstruction", "train/loss_latent": "commitment"}, log_y=True)
PERPLEXITY = Plot("Codebook perplexity per depth", {"train/perplexity_by_depth": ""})
OF_STAGE2 = (
    Plot("Loss per depth (soft targets)", {"train/loss_by_depth": ""}),
    Plot("Accuracy per depth", {"train/accuracy_by_depth": ""}),
)


def stage1_plots(run: Path) -> list[Markup]:
    """What a run of stage 1 logged while training."""
    record = RunRecord.open(run)
    return [*overlaid([record], [LOSSES]), *by_depth(record, [PERPLEXITY])]


def stage2_plots(run: Path) -> list[Markup]:
    """What a run of stage 2 logged while training."""
    return by_depth(RunRecord.open(run), OF_STAGE2)


def newest_picture(run: Path, name: str, alt: str) -> Markup:
    """The newest of the pictures `<name>_<step>.png` of a run."""
    return embedded_png(sorted((run / "samples").glob(f"{name}_*.png"))[-1].read_bytes(), alt)
