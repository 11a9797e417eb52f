"""Every notebook under experiments/ runs from top to bottom, in a copy of its folder."""

import os
import shutil
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

ROOT = Path(__file__).parents[2]
NOTEBOOKS = sorted((ROOT / "experiments").rglob("*.ipynb"))


@pytest.fixture
def importable(monkeypatch):
    """The kernel imports the mpq of this checkout, and draws on no screen."""
    paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(paths))
    monkeypatch.setenv("MPLBACKEND", "agg")


def outputs_of(notebook, kind):
    return [
        output["data"][kind]
        for cell in notebook.cells
        for output in cell.get("outputs", ())
        if kind in output.get("data", {})
    ]


def test_there_is_a_notebook():
    assert NOTEBOOKS


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs(path, tmp_path, importable):
    folder = tmp_path / path.parent.name
    shutil.copytree(path.parent, folder, ignore=shutil.ignore_patterns("runs"))
    notebook = nbformat.read(folder / path.name, as_version=4)
    nbformat.validate(notebook)
    NotebookClient(notebook, timeout=None, resources={"metadata": {"path": str(folder)}}).execute()
    committed = nbformat.read(path, as_version=4)
    figures = outputs_of(notebook, "image/png")
    assert len(figures) == len(outputs_of(committed, "image/png")) >= 1
    assert outputs_of(committed, "text/html"), "commit notebooks with their outputs"


def test_the_quickstart_shows_a_front_an_allocation_and_damages():
    (path,) = (path for path in NOTEBOOKS if path.stem == "quickstart")
    source = "\n".join(cell.source for cell in nbformat.read(path, as_version=4).cells)
    for figure in ("pareto_front", "allocation", "sensitivity"):
        assert f"mpq.plots.{figure}(run" in source
