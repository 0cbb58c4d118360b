"""The notebooks: committed as a whole run left them, and run from a clean kernel with a few steps of training."""

import re

import nbformat
import pytest
from nbclient import NotebookClient

from tests.repository import ROOT

FOLDER = ROOT / "notebooks"
NAMES = sorted(path.name for path in FOLDER.glob("*.ipynb"))
PICTURES = {"quickstart.ipynb": 5, "text_to_image.ipynb": 3}
CELL_SECONDS = 240


def _read(name: str) -> nbformat.NotebookNode:
    return nbformat.read(FOLDER / name, as_version=4)


def _outputs(notebook: nbformat.NotebookNode) -> list[nbformat.NotebookNode]:
    return [output for cell in notebook.cells for output in cell.get("outputs", [])]


def _printed(notebook: nbformat.NotebookNode) -> str:
    return "".join(output.text for output in _outputs(notebook) if output.output_type == "stream")


@pytest.fixture(scope="module")
def executed(tmp_path_factory):
    """Runs a notebook once, in a kernel of the running Python and with its runs in a folder of their own."""
    done: dict[str, nbformat.NotebookNode] = {}

    def run(name: str) -> nbformat.NotebookNode:
        if name not in done:
            runs = tmp_path_factory.mktemp(name.removesuffix(".ipynb"))
            with pytest.MonkeyPatch.context() as patch:
                patch.setenv("RQ_NOTEBOOK_TINY", "1")
                patch.setenv("RQ_NOTEBOOK_RUNS", str(runs))
                # `python3` is the kernel of the interpreter that asks, whether registered or not
                client = NotebookClient(
                    _read(name),
                    timeout=CELL_SECONDS,
                    kernel_name="python3",
                    resources={"metadata": {"path": str(FOLDER)}},
                )
                done[name] = client.execute()
        return done[name]

    return run


def test_no_notebook_is_forgotten():
    assert set(NAMES) == set(PICTURES)


@pytest.mark.parametrize("name", NAMES)
def test_committed_with_the_outputs_of_one_run(name):
    notebook = _read(name)
    nbformat.validate(notebook)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert code and [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
    pictures = [output for output in _outputs(notebook) if "image/png" in output.get("data", {})]
    assert len(pictures) == PICTURES[name]
    said = "".join(output.get("text", "") for output in _outputs(notebook))
    assert not re.search(r"Error:|Traceback|(?<![\w.])/(?:tmp|root|home|work|Users)\b", said)
    assert notebook.cells[0].source.startswith("# ") and notebook.metadata.kernelspec.name == "python3"


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow) if name.startswith("text") else name for name in NAMES]
)
def test_runs_from_a_clean_kernel(executed, name):
    notebook = executed(name)
    pictures = [output for output in _outputs(notebook) if "image/png" in output.get("data", {})]
    assert len(pictures) == PICTURES[name]
    assert not [output for output in _outputs(notebook) if output.output_type == "error"]


def test_quickstart_decodes_from_coarse_to_fine(executed):
    text = _printed(executed("quickstart.ipynb"))
    assert "codes: (8, 4, 4, 4)" in text
    assert [f"{d} codes: mean squared error" in text for d in (1, 2, 3, 4)] == [True] * 4


@pytest.mark.slow
def test_text_to_image_compares_scales_with_chance(executed):
    lines = [line for line in _printed(executed("text_to_image.ipynb")).splitlines() if " colour " in line]
    assert [line.split("axis")[0].strip() for line in lines] == ["scale 1", "scale 2", "scale 3", "scale 6", "chance"]
