from pathlib import Path

import pytest

nbclient = pytest.importorskip("nbclient", reason="the notebook needs the extra `notebooks`")
nbformat = pytest.importorskip("nbformat")
pytest.importorskip("ipykernel")

ROOT = Path(__file__).parents[2]
NOTEBOOK = ROOT / "analysis" / "notebooks" / "explore.ipynb"


def outputs(notebook) -> str:
    return str([cell.outputs for cell in notebook.cells if cell.cell_type == "code"])


def test_notebook_is_stored_without_outputs():
    notebook = nbformat.read(NOTEBOOK, 4)
    nbformat.validate(notebook)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert not any(cell.outputs or cell.execution_count for cell in code) and NOTEBOOK.stat().st_size < 10_000
    imports = [line for cell in code for line in cell.source.splitlines() if "import " in line]
    assert all(line.startswith(("from analysis.", "from IPython.")) for line in imports)


def test_notebook_runs_in_the_folder_of_a_campaign(fig3, monkeypatch):
    folder = fig3(experts=(8, 64), batches=(), launches=1)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    notebook = nbformat.read(NOTEBOOK, 4)
    client = nbclient.NotebookClient(notebook, timeout=120, resources={"metadata": {"path": str(folder)}})
    shown = outputs(client.execute())
    assert shown.count("image/png") == 2  # a figure of the panel, a timeline
    assert "MoEShard" in shown and "V24" in shown and "speedup_ttft" in shown
