"""The notebooks run as they are, and were committed with what they give. Each trains a small sweep through Ray."""

import re
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

import zoology

NOTEBOOKS = sorted((Path(zoology.__file__).parent / "analysis" / "notebooks").glob("*.ipynb"))
EXAMPLE = Path(zoology.__file__).parents[1] / "examples" / "my_mixer.py"
SECONDS = 120


def code(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def shapes(notebook):
    """What kinds of output each cell has."""
    return [[(out.output_type, sorted(out.get("data", {}))) for out in cell.outputs] for cell in code(notebook)]


def test_there_are_three():
    assert [path.stem for path in NOTEBOOKS] == ["frontier", "order", "own_mixer"]


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_it_runs_and_gives_what_was_committed(path, tmp_path):
    committed, notebook = nbformat.read(path, 4), nbformat.read(path, 4)
    for cell in code(notebook):
        cell.outputs, cell.execution_count = [], None
    client = NotebookClient(
        notebook, timeout=SECONDS, kernel_name="python3", resources={"metadata": {"path": tmp_path}}
    )
    client.execute()  # raises what a cell raises
    assert shapes(notebook) == shapes(committed)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_it_is_short_and_was_run_from_top_to_bottom(path):
    notebook = nbformat.read(path, 4)
    nbformat.validate(notebook)
    assert [cell.execution_count for cell in code(notebook)] == list(range(1, len(code(notebook)) + 1))
    assert any("image/png" in data for outputs in shapes(notebook) for _, data in outputs)
    said = [out for cell in code(notebook) for out in cell.outputs]
    assert not any(out.output_type == "error" or out.get("name") == "stderr" for out in said)
    assert not re.search(r"/(tmp|home|root|Users)/", path.read_text())  # where it was run is nobody's business
    assert path.stat().st_size < 200_000
    ours = [cell.source for cell in code(notebook) if not cell.source.startswith("%%writefile")]
    for source in ours:  # they call the library; they hold no logic
        assert len(source.splitlines()) <= 25
        assert not re.search(r"^\s*(def|class|while|if|try)\b", source, re.MULTILINE)


def test_the_mixer_is_the_one_that_the_readme_shows():
    cells = code(nbformat.read(next(path for path in NOTEBOOKS if path.stem == "own_mixer"), 4))
    (written,) = (cell.source for cell in cells if cell.source.startswith("%%writefile"))
    assert written == "%%writefile my_mixer.py\n" + EXAMPLE.read_text().rstrip("\n")
