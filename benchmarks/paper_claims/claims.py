"""The claims: one table. Each says which runs it compares, which numbers are shown, and what must be larger than what.

A check gives a margin per seed, which is positive where the claim holds. It is `seen` where the margin is positive for
every seed, `reversed` where it is negative for every seed, and else `not seen`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from benchmarks.paper_claims.bottlenecks import SHARED, bottleneck_runs
from benchmarks.paper_claims.runs import Run, samples_run, stage1_run, stage2_run
from benchmarks.paper_claims.sizes import Size

Values = Mapping[str, Mapping[str, float]]
"""Of one seed: row -> column -> number."""


@dataclass(frozen=True)
class Cell:
    """Where a number stands: a run, and the path in its result."""

    run: Run
    path: str


@dataclass(frozen=True)
class Check:
    """says: what is claimed. margin: from the numbers of a seed, positive where it holds."""

    says: str
    margin: Callable[[Values], float]


@dataclass(frozen=True)
class Claim:
    """One claim.

    Attributes:
        says: the claim.
        columns: name -> number format.
        rows: from size and seed, row -> column -> where the number stands.
        checks: what is asked of the numbers.
        note: what a reader must know.
        lines: the rows are steps of one curve.
        row_name: what the rows are, where they are numbers.
    """

    says: str
    columns: Mapping[str, str]
    rows: Callable[[Size, int], Mapping[str, Mapping[str, Cell]]]
    checks: tuple[Check, ...]
    note: str = ""
    lines: bool = False
    row_name: str = ""

    def runs(self, size: Size, seed: int) -> list[Run]:
        """The runs of a seed, each once; what one needs stands before it."""
        found: dict[Run, None] = {}

        def add(run: Run) -> None:
            for needed in run.needs:
                add(needed)
            found[run] = None

        for cells in self.rows(size, seed).values():
            for cell in cells.values():
                add(cell.run)
        return list(found)


ERROR = {"error": "{:.4f}", "rFID": "{:.2f}", "codes used": "{:.0%}"}
SAMPLES = {"FID": "{:.2f}", "accuracy": "{:.1%}", "precision": "{:.3f}", "recall": "{:.3f}"}
TEMPERATURES = (0.001, 0.01, 0.1, 1.0)
PUBLISHED_TEMPERATURE = 0.01  # of these sizes' latents; the paper's 0.5 belongs to its own
BATCHES = (8, 32, 128)
TRADED = {name: SAMPLES[name] for name in ("FID", "precision", "recall", "accuracy")} | {"IS": "{:.2f}"}
GUIDANCE = (1.5, 2.0, 3.0)
KEPT = (0.5, 0.25, 0.1)


def _reconstruction(run: Run) -> dict[str, Cell]:
    return {"error": Cell(run, "mse"), "rFID": Cell(run, "rfid"), "codes used": Cell(run, "used")}


def _samples(run: Run) -> dict[str, Cell]:
    return {
        "FID": Cell(run, "fid"),
        "accuracy": Cell(run, "accuracy"),
        "precision": Cell(run, "precision"),
        "recall": Cell(run, "recall"),
    }


def _residual(size: Size, seed: int) -> Run:
    return stage1_run(size, seed, "rq 4x4x4")


def _depth(size: Size, seed: int) -> dict[str, dict[str, Cell]]:
    codes = size.num_codes
    runs = {f"D={depth} K={codes}": stage1_run(size, seed, f"rq 4x4x{depth}", depth=depth) for depth in (1, 2)}
    runs[f"D=4 K={codes}"] = _residual(size, seed)
    for number in (8 * codes, codes * codes):
        runs[f"D=1 K={number}"] = stage1_run(size, seed, f"vq K={number}", depth=1, num_codes=number)
    return {row: _reconstruction(run) for row, run in runs.items()}


def _depth_checks(size: Size) -> tuple[Check, ...]:
    codes = size.num_codes
    one, two, four = (f"D={depth} K={codes}" for depth in (1, 2, 4))
    larger, same_bits = f"D=1 K={8 * codes}", f"D=1 K={codes * codes}"

    def below(low: str, high: str, column: str) -> Callable[[Values], float]:
        return lambda values: values[high][column] - values[low][column]

    return tuple(
        Check(f"{column}: {low} below {high}{why}", below(low, high, column))
        for column in ("error", "rFID")
        for low, high, why in (
            (two, one, ""),
            (four, two, ""),
            (two, larger, " (twice the depth beats eight times the codebook)"),
            (two, same_bits, " (equal bits)"),
            (four, same_bits, ""),
        )
    )


def _coarse_to_fine(size: Size, seed: int) -> dict[str, dict[str, Cell]]:
    run = _residual(size, seed)
    return {f"{depth + 1}": {"error": Cell(run, f"mse_by_depth.{depth}")} for depth in range(4)}


def _targets(size: Size, seed: int) -> dict[str, dict[str, Cell]]:
    stage1 = _residual(size, seed)
    temp = f"loss.temp={PUBLISHED_TEMPERATURE}"
    hard, soft = "loss.type=cross_entropy", "loss.type=soft_target_cross_entropy"
    drawn, nearest = "loss.stochastic_codes=true", "loss.stochastic_codes=false"
    runs = {
        "hard": stage2_run(stage1, "hard targets", temp, hard, nearest),
        "soft targets": stage2_run(stage1, "soft targets", temp, soft, nearest),
        "stochastic codes": stage2_run(stage1, "stochastic codes", temp, hard, drawn),
        "both": _both(size, seed),
    }
    return {row: {**_samples(run), "NLL": Cell(run, "nll")} for row, run in runs.items()}


def _both(size: Size, seed: int, temperature: float = PUBLISHED_TEMPERATURE) -> Run:
    return stage2_run(
        _residual(size, seed),
        f"both, temperature {temperature:g}",
        f"loss.temp={temperature}",
        "loss.type=soft_target_cross_entropy",
        "loss.stochastic_codes=true",
    )


def _temperatures(size: Size, seed: int) -> dict[str, dict[str, Cell]]:
    return {f"{temp:g}": _samples(_both(size, seed, temp)) for temp in TEMPERATURES}


def _fine(size: Size, seed: int) -> Run:
    """Codes 8x8x1: no head, and the body is as much deeper as in the published sizes, where the layers are as many."""
    stage1 = stage1_run(size, seed, "vq 8x8x1", depth=1, fine=True)
    return stage2_run(
        stage1,
        "8x8x1",
        "arch.block_size=[8,8,1]",
        "arch.body.n_layer=6",
        "arch.head.n_layer=0",
        f"loss.temp={PUBLISHED_TEMPERATURE}",
    )


def _speed(size: Size, seed: int) -> dict[str, dict[str, Cell]]:
    coarse, fine = _both(size, seed), _fine(size, seed)
    both = Run("speed", "4x4x4 and 8x8x1", size, seed, needs=(coarse, fine))
    return {
        row: {
            "FID": Cell(run, "fid"),
            "rFID": Cell(run.needs[0], "rfid"),
            "accuracy": Cell(run, "accuracy"),
            "ms per sample": Cell(both, f"{run.label}|ms"),
            "ms, codes alone": Cell(both, f"{run.label}|ms_codes"),
        }
        for row, run in (("4x4x4", coarse), ("8x8x1", fine))
    }


def _choices(size: Size, seed: int) -> dict[str, dict[str, Cell]]:
    plain = _both(size, seed)
    rows = {"plain": plain}
    rows |= {f"guidance {s:g}": samples_run(plain, f"guidance {s:g}", cfg_scale=s) for s in GUIDANCE}
    rows |= {f"best {k:.0%}": samples_run(plain, f"best {k:.0%}", reject_keep=k) for k in KEPT}
    return {row: {**_samples(run), "IS": Cell(run, "is")} for row, run in rows.items()}


def _updates(size: Size, seed: int) -> dict[str, dict[str, Cell]]:
    rows = {}
    for batch in BATCHES:
        for update in ("per_depth", "deferred"):
            # deferred is what the file says: one of these runs is that of the other claims
            words = () if update == "deferred" else (f"arch.hparams.codebook_update={update}",)
            run = stage1_run(size, seed, f"{update}, batch {batch}", *words, batch_size=batch)
            rows[f"{update}, batch {batch}"] = {
                "training": Cell(run, "mse_training"),
                "evaluation": Cell(run, "mse_train_split"),
                "evaluation / training": Cell(run, "gap"),
                "validation": Cell(run, "mse"),
            }
    return rows


def _bottlenecks(size: Size, seed: int) -> dict[str, dict[str, Cell]]:
    return {
        row: {**_reconstruction(run), "CPU seconds": Cell(run, "cpu_seconds")}
        for row, run in bottleneck_runs(size, seed).items()
    }


def _less(column: str, low: str, high: str, says: str) -> Check:
    return Check(says, lambda values: values[high][column] - values[low][column])


def claims_of(size: Size) -> dict[str, Claim]:
    """The table, by letter."""
    best, coldest, hottest = (f"{temp:g}" for temp in (PUBLISHED_TEMPERATURE, TEMPERATURES[0], TEMPERATURES[-1]))
    return {
        "a": Claim(
            "Error and rFID fall with depth at equal K; depth does more than a larger codebook",
            ERROR,
            _depth,
            _depth_checks(size),
            "Every row is a model trained on its own, codes on a 4x4 grid.",
        ),
        "b": Claim(
            "Coarse to fine: most of the error is gone after the first codes",
            {"error": "{:.4f}"},
            _coarse_to_fine,
            (
                Check(
                    "the second code removes more than the third and fourth together",
                    lambda v: (v["1"]["error"] - v["2"]["error"]) - (v["2"]["error"] - v["4"]["error"]),
                ),
                Check(
                    "after two of four codes the error is within a quarter of its end",
                    lambda v: 1.25 * v["4"]["error"] - v["2"]["error"],
                ),
            ),
            "Errors of the decoded first 1, 2, 3, 4 codes of the same models.",
            lines=True,
            row_name="codes",
        ),
        "c": Claim(
            "Soft targets with stochastic codes beat hard targets in FID at equal steps, each alone too",
            {**SAMPLES, "NLL": "{:.3f}"},
            _targets,
            (
                _less("FID", "both", "hard", "both below hard"),
                _less("FID", "soft targets", "hard", "soft targets alone below hard"),
                _less("FID", "stochastic codes", "hard", "stochastic codes alone below hard"),
            ),
            "NLL is that of the nearest codes of validation images, in nats per code.",
        ),
        "e": Claim(
            "Codes 4x4x4 are sampled several times faster than 8x8x1 of as many codes and bits, at comparable FID",
            {
                "ms per sample": "{:.2f}",
                "FID": "{:.2f}",
                "rFID": "{:.2f}",
                "accuracy": "{:.1%}",
                "ms, codes alone": "{:.2f}",
            },
            _speed,
            (
                Check(
                    "twice as fast or more",
                    lambda v: v["8x8x1"]["ms per sample"] / v["4x4x4"]["ms per sample"] - 2,
                ),
                Check("FID at most a tenth higher", lambda v: 1.1 * v["8x8x1"]["FID"] - v["4x4x4"]["FID"]),
            ),
            "Timed by `measure_throughput.measure.time_loops`, the two models taking turns in one process.",
        ),
        "g": Claim(
            "Deferred codebook updates close the gap between training and evaluation that updates per depth leave",
            {"training": "{:.4f}", "evaluation": "{:.4f}", "evaluation / training": "{:.3f}", "validation": "{:.4f}"},
            _updates,
            tuple(
                _less(
                    "evaluation / training", f"deferred, batch {b}", f"per_depth, batch {b}", f"batch {b}: smaller gap"
                )
                for b in BATCHES
            )
            + tuple(
                _less("validation", f"deferred, batch {b}", f"per_depth, batch {b}", f"batch {b}: lower error")
                for b in BATCHES
            ),
            "The same number of images for all; training: the mean of the last eighth of the steps.",
        ),
        "d": Claim(
            "The temperature of the soft targets has an optimum",
            SAMPLES,
            _temperatures,
            (
                _less("FID", best, coldest, f"FID at {best} below {coldest}"),
                _less("FID", best, hottest, f"FID at {best} below {hottest}"),
            ),
            lines=True,
            row_name="temperature",
        ),
        "f": Claim(
            "Rejection sampling and guidance trade recall for precision, and lower FID where they are mild",
            TRADED,
            _choices,
            (
                Check("guidance 2: higher precision", lambda v: v["guidance 2"]["precision"] - v["plain"]["precision"]),
                Check("guidance 2: lower recall", lambda v: v["plain"]["recall"] - v["guidance 2"]["recall"]),
                Check("best 25%: higher precision", lambda v: v["best 25%"]["precision"] - v["plain"]["precision"]),
                Check("best 25%: lower recall", lambda v: v["plain"]["recall"] - v["best 25%"]["recall"]),
                _less("FID", "guidance 1.5", "plain", "guidance 1.5: lower FID"),
                _less("FID", "best 50%", "plain", "best 50%: lower FID"),
            ),
            "The judge of the rejection is the classifier whose features FID is measured in.",
        ),
        "q": Claim(
            "Residual codes have less error than other bottlenecks with the same encoder, decoder and bits",
            {**ERROR, "CPU seconds": "{:.0f}"},
            _bottlenecks,
            tuple(
                _less("error", SHARED, other, f"the published bottleneck has less error than {other}")
                for other in ("plain VQ", "FSQ", "LFQ")
            ),
            "4 codes of 6 bits at each of 4x4 positions; seconds are those of training and scoring.",
        ),
    }
