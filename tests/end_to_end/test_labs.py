"""Every notebook of labs/ runs, and is committed with its outputs."""

from pathlib import Path

import pytest

nbformat = pytest.importorskip("nbformat")
nbclient = pytest.importorskip("nbclient")

LABS = sorted((Path(__file__).parents[2] / "labs").glob("*.ipynb"))


@pytest.mark.slow
@pytest.mark.parametrize("path", LABS, ids=lambda p: p.stem)
# The kernel's own transport: pyzmq's event loop and its unencrypted local sockets.
@pytest.mark.filterwarnings("ignore::RuntimeWarning", "ignore::DeprecationWarning")
def test_a_lab_runs(path, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("MPLBACKEND", "agg")
    notebook = nbformat.read(path, 4)
    client = nbclient.NotebookClient(
        notebook, timeout=280, kernel_name="python3", resources={"metadata": {"path": path.parent}}
    )
    client.execute()
    assert all(
        output.output_type != "error"
        for cell in notebook.cells
        if cell.cell_type == "code"
        for output in cell.outputs
    )


@pytest.mark.parametrize("path", LABS, ids=lambda p: p.stem)
def test_a_lab_is_committed_with_its_outputs(path):
    notebook = nbformat.read(path, 4)
    cells = [c for c in notebook.cells if c.cell_type == "code" and c.source.strip()]
    assert all(c.execution_count for c in cells)
    assert sum(bool(c.outputs) for c in cells) > len(cells) / 2


def test_there_are_labs():
    assert LABS
