"""What all tests share: one thread, no display, no reporting to outside, the same hypothesis examples each time."""

import gc
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import hypothesis
import pytest
import torch

torch.set_num_threads(1)
hypothesis.settings.register_profile("fedsim", deadline=None, derandomize=True, database=None)
hypothesis.settings.load_profile("fedsim")
os.environ.update(OMP_NUM_THREADS="1", MPLBACKEND="Agg", MLFLOW_DISABLE_TELEMETRY="true", FLWR_TELEMETRY_ENABLED="0", FEDSIM_JOBS="1")
os.environ.pop("MLFLOW_TRACKING_URI", None)
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)  # tests and the processes that they start are compiled once
sys.dont_write_bytecode = False


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.get_closest_marker("gpu") and not torch.cuda.is_available():
            item.add_marker(pytest.mark.skip(reason=f"{item.name}: no CUDA device"))


def pytest_collection_finish() -> None:
    """What was imported stays: the collector of garbage need not look at it."""
    gc.freeze()


@pytest.fixture(autouse=True)
def _own_modules(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A test's own modules, and its changes of the import path, end with it."""
    path, base, before = [*sys.path], str(tmp_path_factory.getbasetemp()), {*sys.modules}
    yield
    sys.path[:] = path
    for name in {*sys.modules} - before:
        if str(getattr(sys.modules[name], "__file__", None)).startswith(base):
            del sys.modules[name]


@pytest.fixture(autouse=True)
def _own_data() -> Iterator[None]:
    """What a test, or a worker in one of its threads, takes for the folder of data ends with it."""
    before = os.environ.get("FEDSIM_DATA")
    yield
    os.environ.pop("FEDSIM_DATA", None)
    if before is not None:
        os.environ["FEDSIM_DATA"] = before


@pytest.fixture(autouse=True)
def _few_pictures(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs draw their pictures, which takes far longer than they do, only in tests marked `pictures`."""
    if request.node.get_closest_marker("pictures") is None:
        monkeypatch.setattr("fedsim.report.figures.plots.draw", lambda *_, **__: [])


@pytest.fixture(autouse=True)
def _patient_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    """The end of a run waits for its upload as long as a busy machine needs: what tests see does not hang on the machine's speed."""
    monkeypatch.setattr("fedsim.report.mlflow.tracking.WAIT", 120.0)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder, which is the working folder during the test: `runs/` appears in it."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(scope="session")
def data() -> Path:
    """The folder of the real data sets, absolute. Tests that ask for it are skipped where FEDSIM_DATA is not set."""
    name = os.environ.get("FEDSIM_DATA")
    if not name:
        pytest.skip("FEDSIM_DATA is not set")
    path = Path(name).resolve()
    assert path.is_dir(), f"FEDSIM_DATA is no folder: {name}"
    return path
