"""The notebook of the examples runs from its first cell to its last, in a real kernel, with a tiny model."""

from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

NOTEBOOK = Path(__file__).parents[3] / "examples/notebooks/quickstart.ipynb"


def read() -> nbformat.NotebookNode:
    found = nbformat.read(NOTEBOOK, as_version=4)  # type: ignore[no-untyped-call]
    assert isinstance(found, nbformat.NotebookNode)
    return found


def test_the_notebook_is_stored_without_outputs() -> None:
    nbformat.validate(read())
    for cell in read().cells:
        if cell.cell_type == "code":
            assert cell.outputs == []
            assert cell.execution_count is None


def test_the_notebook_trains_serves_and_asks(
    base_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
    notebook = read()
    (parameters,) = [cell for cell in notebook.cells if "parameters" in cell.metadata.get("tags", [])]
    parameters.source = f"MODEL = {str(base_folder)!r}\nFOLDER = 'quickstart'"
    client = NotebookClient(notebook, timeout=500, resources={"metadata": {"path": str(tmp_path)}})
    client.execute()

    shown = {cell.source.partition("\n")[0]: cell.outputs for cell in notebook.cells if cell.cell_type == "code"}
    (panel,) = [output for output in shown["job = client.train("] if output.output_type == "display_data"]
    assert "polyline" in panel["data"]["text/html"]
    assert "Succeeded" in panel["data"]["text/html"]
    assert "Succeeded  100%" in panel["data"]["text/plain"]
    assert "<iframe" in shown["job.report()"][0]["data"]["text/html"]
    assert "adapter_model.safetensors" in shown['folder = job.pull(f"{FOLDER}/adapter")'][-1]["data"]["text/plain"]
    assert shown["service = client.serve(job)"][0]["text"].strip()
    assert "spec.training.learning_rate is 5" in shown["try:"][0]["text"]
