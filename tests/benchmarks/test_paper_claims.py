"""The machinery of the paper's claims: keys, kept results, verdicts, tables; the runs themselves are not made here."""

from __future__ import annotations

import dataclasses
import json

import pytest

from benchmarks.paper_claims import __main__ as command
from benchmarks.paper_claims.claims import Cell, Check, Claim, claims_of
from benchmarks.paper_claims.figures import draw_figure
from benchmarks.paper_claims.results import DECIDES, ROOT, Results, code_version
from benchmarks.paper_claims.runs import stage1_run, stage2_run
from benchmarks.paper_claims.sizes import SIZES
from benchmarks.paper_claims.tables import NOT_RUN, NOT_SEEN, REVERSED, SEEN, evaluate, look_up, markdown, verdict
from runtime.config import load_config
from training.experiment import plan_batches
from training.stages.stage1 import Stage1Config
from training.stages.stage2 import Stage2Config

SIZE = SIZES["cpu"]
ABOUT = {"cpu_seconds": 1.0, "torch": "2"}


def all_runs(size, letters="abcdefgq"):
    return {str(run): run for letter in letters for run in claims_of(size)[letter].runs(size, 0)}


@pytest.mark.parametrize(("name", "letters"), [("cpu", "cegq"), ("gpu", "e")])
def test_runs_are_valid_configs_and_plans(name, letters):
    size = SIZES[name]
    for run in all_runs(size, letters).values():
        if run.kind in ("stage1", "stage2"):
            schema, path = {"stage1": (Stage1Config, size.stage1), "stage2": (Stage2Config, size.stage2)}[run.kind]
            config = load_config(schema, ROOT / path, list(run.changes))
            images = size.images1 if run.kind == "stage1" else size.images2
            plan = plan_batches(config.experiment, 60_000, 1)
            assert images - plan.global_batch < plan.total_steps * plan.global_batch <= images


def test_a_claim_lists_what_it_needs_first_and_shares_runs():
    for claim in claims_of(SIZE).values():
        found = claim.runs(SIZE, 0)
        for place, run in enumerate(found):
            assert all(needed in found[:place] for needed in run.needs)
    keys = [run.key("code") for run in all_runs(SIZE).values()]
    deferred = next(run for run in all_runs(SIZE).values() if run.label == "deferred, batch 32")
    residual = next(run for run in all_runs(SIZE).values() if run.label == "rq 4x4x4")
    assert deferred.key("code") == residual.key("code")  # the same run under two names
    assert len(set(keys)) == len(keys) - 1


def test_the_key_is_of_config_seed_needs_and_code_and_not_of_words():
    run = stage1_run(SIZE, 0, "a")
    assert run.key("x") == stage1_run(SIZE, 0, "b").key("x")
    others = [
        stage1_run(SIZE, 1, "a").key("x"),
        stage1_run(SIZE, 0, "a", depth=2).key("x"),
        stage1_run(SIZE, 0, "a", batch_size=8).key("x"),
        stage1_run(dataclasses.replace(SIZE, scored=100), 0, "a").key("x"),
        run.key("y"),
    ]
    assert run.key("x") not in others and len(set(others)) == len(others)
    assert stage2_run(run, "a").key("x") != stage2_run(stage1_run(SIZE, 0, "a", depth=2), "a").key("x")


def test_the_code_version_is_of_code_alone(tmp_path):
    def write(path, text):
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text(text, encoding="utf-8")

    def version():
        code_version.cache_clear()
        return code_version("stage1", tmp_path)

    for name in DECIDES["stage1"]:
        if name.endswith(".py"):
            write(name, "x = 1\n")
        else:
            (tmp_path / name).mkdir(parents=True)
    first = version()
    write("rqvae/model.py", '"""Says more."""\nfrom a import b\n# and why\nx = 1\n')
    write("README.md", "else")
    assert version() == first
    write("rqvae/model.py", "x = 2\n")
    assert version() != first
    (tmp_path / "rqvae/model.py").unlink()
    with pytest.raises(FileNotFoundError):
        version()
    code_version.cache_clear()


def test_what_decides_is_there():
    assert all((ROOT / name).exists() for names in DECIDES.values() for name in names)


def test_results_are_kept_and_a_torn_line_is_run_again(tmp_path):
    path, run, other = tmp_path / "r.jsonl", stage1_run(SIZE, 0, "a"), stage1_run(SIZE, 1, "a")
    kept = Results(path)
    assert kept.find(run) is None
    kept.add(run, {"mse": 1.0}, ABOUT)
    kept.add(other, {"mse": 2.0}, ABOUT)
    path.write_text(path.read_text()[:-20])
    again = Results(path)
    assert again.find(run)["result"] == {"mse": 1.0} and again.find(other) is None
    again.add(other, {"mse": 3.0}, ABOUT)
    assert Results(path).find(other)["result"] == {"mse": 3.0}


def test_results_of_other_code_count_when_asked_for(tmp_path):
    path, run = tmp_path / "r.jsonl", stage1_run(SIZE, 0, "a")
    Results(path).add(run, {"mse": 1.0}, ABOUT)
    line = json.loads(path.read_text())
    path.write_text(json.dumps(line | {"key": run.key("before"), "code": "before"}) + "\n")
    assert Results(path).find(run) is None
    assert Results(path, any_code=True).find(run)["code"] == "before"


@pytest.mark.parametrize(
    ("margins", "found"), [([1, 2, 0.1], SEEN), ([-1, -2, -3], REVERSED), ([1, -1, 2], NOT_SEEN), ([0, 1, 1], NOT_SEEN)]
)
def test_a_verdict_needs_every_seed(margins, found):
    assert verdict(margins) == found


def test_paths_of_results():
    result = {"by_depth": [1.0, 2.0], "temperature 0.5": {"ms": 3.0}}
    assert look_up(result, "by_depth.1") == 2 and look_up(result, "temperature 0.5|ms") == 3


def small_claim():
    def rows(size, seed):
        return {
            name: {"error": Cell(stage1_run(size, seed, name, depth=d), "mse")} for name, d in (("low", 4), ("high", 1))
        }

    check = Check("low below high", lambda values: values["high"]["error"] - values["low"]["error"])
    return Claim("one", {"error": "{:.2f}"}, rows, (check,))


def test_a_table_says_what_has_not_run(tmp_path):
    claim, numbers = small_claim(), {}

    def find(cell):
        return numbers.get((cell.run.seed, cell.run.label))

    nothing = evaluate(claim, SIZE, (0, 1), find)
    assert nothing.verdicts == [NOT_RUN] and NOT_RUN in markdown("x", claim, nothing, 2)
    assert not draw_figure(tmp_path / "x.png", "x", claim, nothing)
    numbers |= {(0, "low"): 1.0, (0, "high"): 2.0, (1, "low"): 3.0}
    part = evaluate(claim, SIZE, (0, 1), find)
    assert part.seeds == [0] and part.verdicts == [NOT_RUN] and part.margins == [[1.0]]
    numbers[1, "high"] = 5.0
    text = markdown("x", claim, evaluate(claim, SIZE, (0, 1), find), 2)
    assert "| low | 2.00 ± 1.41 |" in text and "low below high: **seen** (2 of 2 seeds)" in text


def test_the_report_is_written_from_kept_results(tmp_path, capsys):
    pytest.importorskip("matplotlib")
    results = Results(tmp_path / "paper_claims_runs.jsonl")
    run = stage1_run(SIZE, 0, "rq 4x4x4")
    others = dict.fromkeys(("mse", "mse_training", "mse_train_split", "gap", "rfid", "used"), 0.5)
    results.add(run, others | {"mse_by_depth": [0.4, 0.2, 0.15, 0.1]}, ABOUT)
    folders = ["--results", str(tmp_path), "--docs", str(tmp_path)]
    command.main([*folders, "--seeds", "0", "--report"])
    line = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert [check["verdict"] for check in line["claims"]["b"]["checks"]] == [SEEN, "reversed"]
    assert line["claims"]["c"]["checks"][0]["verdict"] == NOT_RUN
    document = (tmp_path / "paper_claims.md").read_text()
    assert "| 2 | 0.2000 (1 seed) |" in document and (tmp_path / "paper_claims" / "cpu_b.png").is_file()
    command.main([*folders, "--seeds", "0", "--plan", "--claims", "b"])
    assert capsys.readouterr().out == "(b) stage1 rq 4x4x4, seed 0: done\n"


def test_unknown_claims_are_refused(tmp_path):
    with pytest.raises(ValueError, match="--claims z: choose from a, b"):
        command.main(["--claims", "z", "--results", str(tmp_path)])
