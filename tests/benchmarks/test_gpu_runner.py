"""`python -m benchmarks.gpu`: what becomes of items that crash, hang or do not fit, resuming, tables, errors."""

import json
import os
import time

import pytest

from benchmarks.gpu import __main__ as program
from benchmarks.gpu.items import profiles
from benchmarks.gpu.items.profiles import busy_and_gaps
from benchmarks.gpu.plan import PLAN, Item, chosen
from benchmarks.gpu.result_lines import ResultLines, read_lines
from benchmarks.gpu.running import ItemProcesses, Outcome
from benchmarks.gpu.settings import Settings
from benchmarks.gpu.tables import target_table
from benchmarks.gpu.targets import TARGETS
from tests.commands import run

HERE = "tests.benchmarks.fake_items"
IDENTITY = {"device": "D", "driver": None, "versions": {}, "tiny": True, "commit": "c", "dirty": False, "code": "1"}


@pytest.fixture(scope="module")
def processes():
    return ItemProcesses([HERE, "pytest"])


@pytest.fixture
def settings(tmp_path):
    return Settings("cpu", True, None, str(tmp_path / "gpu.jsonl"))


def item(name, seconds=1):
    return Item(name, f"{HERE}:{name}", seconds, "what it is")


def run_all(names, processes, settings, tmp_path, minutes=10.0, again=False, identity=IDENTITY):
    lines = ResultLines(tmp_path / "gpu.jsonl", identity)
    left_out = program.run_items(
        [item(name) for name in names], processes, settings, lines, program.Budget(minutes), again
    )
    return lines, left_out


def test_no_item_takes_the_others_with_it(processes, settings, tmp_path):
    names = ["right", "wrong", "one_case_fails", "raises", "crashes", "leaves", "lacks", "counts"]
    lines, left_out = run_all(names, processes, settings, tmp_path)
    written = {line["item"]: line for line in read_lines(tmp_path / "gpu.jsonl")}
    assert list(written) == [name for name in names if name != "lacks"]
    assert left_out == {"lacks": "absent: no files of anything"}
    assert {name for name, line in written.items() if line["ok"]} == {"right", "counts"}
    assert written["right"]["result"] == {"number": 3, "holds": {"right": True, "error": 0.0}}
    assert written["wrong"]["error"] == "does not hold is wrong: {'error': 0.5}"
    assert written["wrong"]["result"]["after"] == 1
    assert written["one_case_fails"]["error"] == "bad: ValueError: two lines"
    assert written["one_case_fails"]["result"]["good"] == 1
    assert written["raises"]["error"] == "MemoryError: all of it is taken"
    assert written["crashes"]["error"] == "ended by signal SIGSEGV"
    assert written["crashes"]["result"]["before"] == 1
    assert "a last word" in written["crashes"]["result"]["output"]
    assert written["leaves"]["error"] == "ended with exit code 3 before it was through"
    for line in written.values():
        assert IDENTITY.items() <= line.items()


def test_what_hangs_is_ended_with_all_that_it_started(processes, settings):
    outcome = processes.run(f"{HERE}:hangs", settings, limit=3.0)
    assert outcome.wrong == ["no end after 3 s"]
    child = outcome.result["child"]
    for _ in range(100):  # until the system has taken note of its death
        if not _is_alive(child):
            return
        time.sleep(0.05)
    raise AssertionError("the child lives on")


def _is_alive(pid):
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_a_run_goes_on_where_it_stopped(processes, settings, tmp_path):
    count = tmp_path / "count"

    def times():
        return len(count.read_text().splitlines())

    run_all(["counts"], processes, settings, tmp_path)
    with (tmp_path / "gpu.jsonl").open("a") as file:
        file.write('{"item": "right", "ok": tr')  # cut off
    lines, left_out = run_all(["counts", "right"], processes, settings, tmp_path)
    assert (times(), left_out) == (1, {})
    assert [line["item"] for line in read_lines(tmp_path / "gpu.jsonl")] == ["counts", "right"]
    run_all(["counts"], processes, settings, tmp_path, again=True)
    assert times() == 2
    for name in ("device", "commit", "code", "tiny"):
        before = times()
        run_all(["counts"], processes, settings, tmp_path, identity={**IDENTITY, name: "other"})
        assert times() == before + 1, name


def test_what_was_wrong_is_run_again(tmp_path):
    lines = ResultLines(tmp_path / "gpu.jsonl", IDENTITY)
    lines.append("a", Outcome())
    assert ResultLines(tmp_path / "gpu.jsonl", IDENTITY).is_done("a")
    lines.append("a", Outcome(wrong=["x"]))
    assert not ResultLines(tmp_path / "gpu.jsonl", IDENTITY).is_done("a")


def test_profiles_choose_by_what_this_code_reached_on_this_device(tmp_path):
    path, case = tmp_path / "gpu.jsonl", profiles.CASES["stage 1, 256 px, bf16"]
    for identity, share in (
        ({**IDENTITY, "commit": "other"}, 0.1),
        (IDENTITY, 0.4),
        ({**IDENTITY, "device": "x"}, 0.2),
    ):
        ResultLines(path, identity).append(case.item, Outcome(result={case.entry: {case.share: share}}))
    shares = profiles._shares(path, IDENTITY)
    assert shares.pop("stage 1, 256 px, bf16") == 0.4
    assert set(shares.values()) == {None}


def test_items_that_do_not_fit_are_not_started(processes, settings, tmp_path):
    lines, left_out = run_all(["counts", "right"], processes, settings, tmp_path, minutes=0.01)
    assert list(left_out) == ["counts", "right"]
    assert "s left, about 3 s needed" in left_out["counts"]
    assert not (tmp_path / "gpu.jsonl").exists()


@pytest.fixture
def fake_program(monkeypatch, tmp_path, capsys):
    """The whole program with two items: exit code and what it printed."""

    def call(*names, words=()):
        monkeypatch.setattr(program, "PLAN", tuple(item(name) for name in names))
        monkeypatch.setattr(program, "chosen", lambda only, own_runs: [item(name) for name in names])
        monkeypatch.setattr(program, "OF_SCRIPTS", ())
        monkeypatch.setattr(program, "describe_machine", lambda *_: {k: IDENTITY[k] for k in list(IDENTITY)[:3]})
        capsys.readouterr()
        return program.main(["--tiny", "--out", str(tmp_path), *words]), capsys.readouterr().out

    return call


def test_exit_codes_and_tables(fake_program):
    code, out = fake_program("right", "lacks")
    assert code == 0
    assert "lacks  not run           absent: no files of anything" in out
    assert out.count("not measured") == len(TARGETS)
    code, out = fake_program("right", "wrong")
    assert code == 1
    assert "right: was right already" in out
    assert "wrong  WRONG" in out
    code, out = fake_program("counts", words=["--minutes", "0.001"])
    assert (code, "not run" in out) == (1, True)


def test_every_target_is_met_or_not():
    row = {"ar_ms_per_sample": 0.7, "roofline_share": 0.4, "batch_latency_s": 0.1}
    lines = {
        "sampler_8x8x4": {"result": {f"batch {batch}": row for batch in (1, 200, 500)}},
        "sampler_16x16x1": {"result": {"batch 200": {"ar_ms_per_sample": 3.5}}},
        "stage1_256": {"result": {"fp32": {"images_per_s": 90}, "bf16 compiled": {"images_per_s": 221}}},
        "quantizers": {"result": {"search": {"times_product": 1.3}}},
        "stage2_1400m": {"result": {"batch 64 latents": {"error": "out of memory"}}},
    }
    verdicts = [line.split()[-2:] for line in target_table(lines, tiny=False).splitlines()[1:]]
    words = [" ".join(pair) if pair[0] == "not" else pair[1] for pair in verdicts]
    assert words == ["met", "not met", "met", "met", "not measured", "met", "not met", "met"]


def test_gaps_between_kernels():
    assert busy_and_gaps([(0, 4), (2, 3), (6, 7), (7, 9), (12, 13)]) == (8, [2, 3])


def test_the_plan_fits_into_eight_minutes():
    ended = run("-m", "benchmarks.gpu", "--plan")
    assert ended.code == 0
    assert all(item.name in ended.out for item in PLAN)
    assert sum(item.seconds for item in PLAN if not item.own_run) <= 480


def test_a_run_of_its_own_is_part_of_no_other_unless_it_is_asked_for():
    """A default run of 8 minutes has no time for it, and would end in exit code 1 however right everything was."""
    own = [item.name for item in PLAN if item.own_run]
    assert own == ["fashion_mnist"]
    assert [item.name for item in chosen(None, own_runs=False)] == [item.name for item in PLAN if not item.own_run]
    assert chosen(None, own_runs=True) == list(PLAN)
    assert [item.name for item in chosen(own, own_runs=False)] == own


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--tiny", "--only", "nothing"], "--only nothing: no such item; there are environment, golden"),
        (["--device", "cpu"], "--device cpu runs with --tiny only"),
        (["--tiny", "--minutes", "0"], "--minutes 0 must be positive"),
        (["--tiny", "--fashion-mnist", "nowhere"], "--fashion-mnist nowhere: there is no such folder"),
    ],
)
def test_mistakes_are_one_line_with_exit_code_2(words, message):
    ended = run("-m", "benchmarks.gpu", *words)
    assert (ended.code, ended.out) == (2, "")
    assert ended.err.startswith(f"error: {message}")
    assert len(ended.err.splitlines()) == 1


def test_missing_packages_are_named_in_one_line(monkeypatch, tmp_path):
    monkeypatch.setattr(program.check_packages.__globals__["importlib"].util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"^packages are missing: pip install torch torchvision .* tqdm$"):
        program.main(["--tiny", "--out", str(tmp_path)])


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_every_item_runs_on_a_cpu(tmp_path):
    ended = run("-m", "benchmarks.gpu", "--tiny", "--device", "cpu", "--minutes", "14", "--out", tmp_path, timeout=880)
    assert ended.code == 0, ended.out[-3000:] + ended.err[-2000:]
    assert [line["item"] for line in read_lines(tmp_path / "gpu.jsonl")] == [item.name for item in PLAN]
    assert json.loads((tmp_path / "gpu.jsonl").read_text().splitlines()[0])["versions"]["torch"]
    assert os.listdir(tmp_path) == ["gpu.jsonl"]
