"""What the numbers of a run mean, in plain words: the thresholds that are known to matter, as one table."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from training.report.run_record import RunRecord

CHANCE_GAP = 0.05  # real minus fake logits: below it the discriminator guesses
SLOW_LOADER = 0.1  # of the time
WORSE = 1.1  # times the best validation value


def hints(run: RunRecord) -> list[str]:
    """A sentence for everything that looks wrong; empty where nothing does."""
    return [sentence for check in CHECKS for sentence in check(run)]


def _collapse(run: RunRecord) -> Iterator[str]:
    lowest = run.setting("experiment.min_code_usage", 0.02)
    low = [
        f"{share:.1%} at depth {depth}"
        for depth, share in enumerate(run.last("train/used_fraction_by_depth") or (), start=1)
        if share is not None and share < lowest
    ]
    if low:
        yield (
            f"The codebook collapses: of the codes only {', '.join(low)} were used in the last interval. Restart "
            "unused codes (arch.hparams.restart_unused_codes=true), or start with more images per step."
        )


def _chance(run: RunRecord) -> Iterator[str]:
    gap = run.now("train/disc_gap")
    if gap is not None and abs(gap) < CHANCE_GAP:
        yield (
            f"The discriminator is at chance: it gives real images {gap:.3g} more than reconstructions. Its loss "
            "says nothing to the autoencoder: raise the learning rate of gan.disc.optimizer, or gan.loss.disc_start."
        )


def _slow_loader(run: RunRecord) -> Iterator[str]:
    waiting = run.now("timing/data_wait_share")
    if waiting is not None and waiting > SLOW_LOADER:
        workers = run.setting("experiment.num_workers", 0)
        yield (
            f"The loader is too slow: {waiting:.0%} of the time is spent waiting for data. Raise "
            f"experiment.num_workers (now {workers}), or prepare the images at their final size."
        )


def _warm_up(run: RunRecord) -> Iterator[str]:
    epochs, total = run.setting("optimizer.warmup.epoch", 0) or 0, run.total_steps
    if not run.steps_per_epoch or total is None:
        return
    warm_up = epochs * run.steps_per_epoch
    if warm_up >= total:
        yield (
            f"The warm-up never ends: it takes {warm_up:.0f} steps, the run has {total}. Lower optimizer.warmup.epoch "
            f"(now {epochs:g})."
        )


def _skipped(run: RunRecord) -> Iterator[str]:
    skipped = run.last("train/skipped_steps")
    if skipped:
        yield f"{skipped:.0f} steps were skipped because a loss was not finite; their batches lie under faults/."


def _over_fitted(run: RunRecord) -> Iterator[str]:
    for key in ("val/nll", "val/recon_mse"):
        curve = run.curve(key)
        if len(curve) < 3:
            continue
        step, best = min(curve, key=lambda point: point[1])
        if curve[-1][1] > WORSE * best:
            yield (
                f"Validation gets worse: {key.removeprefix('val/')} was {best:.4g} at step {step} and is now "
                f"{curve[-1][1]:.4g}. The model over-fits: stop earlier, or use more images or more dropout."
            )


def _no_better_than_frequencies(run: RunRecord) -> Iterator[str]:
    nll, unigram = run.last("val/nll"), run.last("val/unigram_nll")
    if nll is not None and unigram is not None and nll >= unigram:
        yield (
            f"Stage 2 knows no more than how often each code occurs: {nll:.3f} nats per code against {unigram:.3f}. It "
            "needs more steps, or a higher learning rate."
        )


CHECKS: tuple[Callable[[RunRecord], Iterator[str]], ...] = (
    _collapse,
    _chance,
    _slow_loader,
    _warm_up,
    _skipped,
    _over_fitted,
    _no_better_than_frequencies,
)
