"""Flags and overrides in any order, and the errors that suggest the nearest flag."""

from __future__ import annotations

import pytest

from runtime.cli import build_parser
from tests.architecture import product_sources
from tests.commands import succeed
from tests.repository import ROOT


@pytest.fixture
def parser():
    parser = build_parser("A script.")
    parser.add_argument("-m", "--model-config")
    parser.add_argument("-n", "--n-samples", type=int)
    parser.add_argument("--top-k", nargs="+", type=int)
    parser.add_argument("--eval", action="store_true")
    return parser


def test_overrides_stand_anywhere(parser):
    args = parser.parse_args(["a.b=1", "-m", "x=y.yaml", "+c=2", "--eval", "d=[1,2]", "--top-k", "3", "4", "e=5"])
    assert args.overrides == ["a.b=1", "+c=2", "d=[1,2]", "e=5"]
    assert (args.model_config, args.eval, args.top_k) == ("x=y.yaml", True, [3, 4])


@pytest.mark.parametrize("words", [["-m=a.yaml"], ["-m", "a.yaml"], ["--model-config=a.yaml"], ["-ma.yaml"]])
def test_every_way_to_write_a_value(parser, words):
    args = parser.parse_args(words)
    assert args.model_config == "a.yaml"
    assert args.overrides == []


def test_defaults(parser):
    args = parser.parse_args([])
    assert (args.seed, args.local_rank, args.world_size, args.node_rank) == (0, None, None, None)
    assert (args.dist_backend, args.timeout, args.overrides) == ("auto", 86400, [])


@pytest.mark.parametrize("flag", ["--local-rank=1", "--local_rank=1"])
def test_the_flag_of_torch_distributed_launch(parser, flag):
    assert parser.parse_args([flag]).local_rank == 1


def test_published_process_flags(parser):
    args = parser.parse_args("--world_size 2 --node_rank 0 --dist-backend gloo --timeout 60".split())
    assert (args.world_size, args.node_rank, args.dist_backend, args.timeout) == (2, 0, "gloo", 60)


ERRORS = {
    "--model-confg x": "unknown flag --model-confg; did you mean --model-config?",
    "--topk 3": "unknown flag --topk; did you mean --top-k?",
    "--model x": "unknown flag --model; did you mean --model-config?",
    "--zzzzzz": "unknown flag --zzzzzz; -h lists the flags",
    "stray": "unexpected argument 'stray'; overrides are written key=value",
    "--n-samples many": "argument -n/--n-samples: invalid int value: 'many'",
    "--dist-backend mpi": "invalid choice: 'mpi'",
    "-m": "expected one argument",
}


@pytest.mark.parametrize("line", ERRORS)
def test_a_wrong_flag_gives_one_line_and_exit_code_2(parser, line, capsys):
    with pytest.raises(SystemExit) as exit_info:
        parser.parse_args(line.split())
    output = capsys.readouterr()
    assert exit_info.value.code == 2
    assert output.err.startswith("error: ")
    assert ERRORS[line] in output.err
    assert output.err.count("\n") == 1
    assert output.out == ""


def test_the_arguments_default_to_those_of_the_process(parser, monkeypatch):
    monkeypatch.setattr("sys.argv", ["script", "--eval", "a=1"])
    args = parser.parse_args()
    assert args.eval
    assert args.overrides == ["a=1"]


HEAVY = ("torch", "torchvision", "tensorboard", "scipy", "sklearn", "matplotlib", "lpips")
# Scripts that measure one thing, for hours: what they measure with is imported first.
MEASUREMENTS = "benchmarks"
HELP = """
import contextlib, io, runpy, sys
for name in sys.argv[1:]:
    sys.argv = [name, "--help"]
    with contextlib.redirect_stdout(io.StringIO()) as shown, contextlib.suppress(SystemExit):
        if name.endswith(".py"):
            runpy.run_path(name, run_name="__main__")
        else:
            runpy.run_module(name, run_name="__main__")
    lines = shown.getvalue().splitlines() or [""]
    print(name, lines[0].split(":")[0], *(heavy for heavy in {heavy} if heavy in sys.modules), sep="|")
"""


def commands():
    """Every file that may be started and takes flags, as `python` takes it."""
    for source in product_sources(ROOT):
        if "\nif __name__ ==" in source.text and "parse_args(" in source.text:
            in_package = "/" in source.name
            yield source.module.removesuffix(".__main__") if in_package else source.name


def test_help_of_no_command_waits_for_torch():
    read_from_the_top = (f"{MEASUREMENTS}.", "examples.")
    names = [name for name in commands() if not name.startswith(read_from_the_top) or name == "benchmarks.gpu"]
    assert {"main_sampling_fid.py", "data.prepare", "benchmarks.gpu", "rqtransformer.pretrained"} < set(names)
    printed = succeed("-c", HELP.format(heavy=HEAVY), *names).out
    assert printed.splitlines() == [f"{name}|usage" for name in names]
