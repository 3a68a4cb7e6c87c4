"""fedsim in a notebook: `scenarios/notebook.ipynb`, executed by a real kernel."""

from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning")  # Jupyter's own
FILE = Path(__file__).parents[1] / "scenarios/notebook.ipynb"


@pytest.fixture(scope="module")
def cells(tmp_path_factory: pytest.TempPathFactory) -> list[Any]:
    """Its code cells with what they showed; an error in one of them is one here."""
    import nbformat
    from nbclient import NotebookClient

    folder = tmp_path_factory.mktemp("notebook")
    book = NotebookClient(
        nbformat.read(FILE, as_version=4), timeout=300, kernel_name="python3", resources={"metadata": {"path": str(folder)}}
    ).execute()
    assert sorted(path.name for path in (folder / "runs").iterdir()) == ["notebook"]
    return [cell for cell in book.cells if cell.cell_type == "code"]


def shown(cell: Any, kind: str) -> str:
    """What it showed last of a kind."""
    return str([output.data[kind] for output in cell.outputs if kind in output.get("data", {})][-1])


def said(cell: Any) -> str:
    return "".join(output.text for output in cell.outputs if output.output_type == "stream")


def test_a_notebook_shows_progress_frames_and_pictures(cells: list[Any]) -> None:
    run, compare, plot, metrics, events, model, mine = cells
    assert "finished 6 of 6" in shown(run, "text/plain") and not any(
        output.get("name") == "stderr" for cell in cells for output in cell.outputs
    )
    assert len(run.outputs) < 12  # progress is painted in one place: 6 runs have 66 evaluations
    assert "sign flips: 3 seeds cannot decide below 0.25; 6 seeds can" in said(compare)
    assert "Over 3 seeds, strategy scaffold ended at" in said(compare) and "<table" in shown(compare, "text/html")
    assert len(shown(plot, "image/png")) > 10_000
    assert "test/accuracy" in shown(metrics, "text/html") and "dispatch" in shown(events, "text/plain")
    assert shown(model, "text/plain") == str(64 * 10 + 10)
    assert shown(mine, "text/html").count("<tr") == 4
