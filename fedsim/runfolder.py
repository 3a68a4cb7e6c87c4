"""Writing a run's folder: the truth about a run, readable at any moment of it."""

import importlib.metadata
import json
import os
import platform
import shutil
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from time import monotonic
from typing import Any

import numpy as np
import safetensors.torch
from safetensors import SafetensorError
from torch import Tensor

from fedsim import __version__
from fedsim.errors import FedsimError, RunError
from fedsim.rows import Layout

SPARE = 2**16  # bytes held back, so that a run that fills the disk can still say how it ended
PACKAGES = ("torch", "numpy", "flwr", "mlflow", "pydantic", "pyarrow")


@contextmanager
def writing(file: Path) -> Iterator[None]:
    """Raises RunError, in one line, where something can't be written."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        number = getattr(error, "errno", None)
        raise RunError(f"{file.name} can't be written: {os.strerror(number) if number else error}") from error


@contextmanager
def whole(file: Path) -> Iterator[Path]:
    """A draft to write to, which becomes the file: complete or not there at all. Raises RunError where it can't be written."""
    draft = file.with_suffix(".part")
    with writing(file):
        try:
            yield draft
            draft.replace(file)
        finally:
            draft.unlink(missing_ok=True)


def write_json(file: Path, content: dict[str, Any]) -> None:
    """Complete or not at all. Raises RunError where it can't be written."""
    with whole(file) as draft:
        draft.write_text(json.dumps(content, indent=1) + "\n")


def make_upper(root: Path, name: str, digits: str, runs: Sequence[str] = (), scenario: Path | None = None) -> Path:
    """A new folder `root/name/<UTC time>-<hash>`, the latest of that name; with `runs`, the upper folder of a sweep of these.

    Raises FedsimError where it can't be written.
    """
    stamp = f"{datetime.now(UTC):%Y%m%d-%H%M%S}-{digits}"
    try:
        (root / name).mkdir(parents=True, exist_ok=True)
        while (root / name / stamp).exists():
            stamp += "0"
        folder = root / name / stamp
        folder.mkdir()
        if runs:
            created = datetime.now(UTC).isoformat(timespec="seconds")
            write_json(folder / "sweep.json", {"name": name, "scenario": str(scenario), "created": created, "runs": list(runs)})
        link = root / name / f".latest-{os.getpid()}"
        link.symlink_to(stamp)
        link.replace(root / name / "latest")
    except OSError as error:
        raise FedsimError(f"{root / name}: can't write the run's folder: {error.strerror}") from error
    return folder


class RunWriter:
    """One run's files but its events: scenario.yaml, run.json, metrics.jsonl, log.txt, model.safetensors, labels.npz, parts/.

    `own` are the user's own modules: where each belongs within parts/, and its file. All methods raise RunError where a file can't
    be written.
    """

    def __init__(self, folder: Path, resolved: str, own: Mapping[str, Path]) -> None:
        self.folder, self.began = folder, monotonic()
        self.info: dict[str, Any] = {}
        self.spare = folder / "spare.part"
        with writing(folder):
            folder.mkdir(parents=True, exist_ok=True)
            (folder / "scenario.yaml").write_text(resolved)
            (folder / "metrics.jsonl").write_text("")
            for name, file in own.items():
                (folder / "parts" / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(file, folder / "parts" / name)

    def begin(self, info: dict[str, Any]) -> None:
        """Writes run.json for the first time: from now on the folder is a run."""
        with writing(self.spare):
            self.spare.write_bytes(os.urandom(SPARE))
        now = datetime.now(UTC).isoformat(timespec="seconds")
        self.update(**info, status="running", version=__version__, versions=versions(), commit=commit(), created=now)

    def make_room(self) -> None:
        """Gives back the bytes that were held back, before the last files are written."""
        self.spare.unlink(missing_ok=True)

    def update(self, **changes: Any) -> None:
        """Writes run.json anew."""
        self.info |= changes
        write_json(self.folder / "run.json", self.info)

    def metrics(self, record: dict[str, Any]) -> None:
        """One line."""
        self._append("metrics.jsonl", json.dumps(record))

    def log(self, text: str) -> None:
        """A line with the wall seconds since the start."""
        self._append("log.txt", f"{monotonic() - self.began:9.2f} s  {text}")

    def _append(self, name: str, line: str) -> None:
        with writing(self.folder / name), (self.folder / name).open("a") as file:
            file.write(line + "\n")

    def model(self, models: Tensor, layout: Layout, buffers: Tensor, statistics: Layout) -> None:
        """The models [h, d] by parameter name and their running statistics [h, b]; a server's one without the leading axis."""
        parts = layout.views(models) | statistics.views(buffers)
        rows = {name: (view[0] if len(models) == 1 else view).cpu().contiguous() for name, view in parts.items()}
        with whole(self.folder / "model.safetensors") as draft:
            safetensors.torch.save_file(rows, draft)

    def labels(self, nodes: Tensor, counts: Tensor) -> None:
        """Of nodes [k] their samples of each class, int64 [k, classes]."""
        if counts.shape[1]:
            with whole(self.folder / "labels.npz") as draft, draft.open("wb") as file:
                np.savez_compressed(file, nodes=nodes.cpu().numpy(), counts=counts.cpu().numpy())


def versions() -> dict[str, str]:
    """Of Python and the packages that results depend on."""
    return {"python": platform.python_version()} | {name: importlib.metadata.version(name) for name in PACKAGES}


def commit() -> str | None:
    """The commit of the working folder, `+` for uncommitted changes; None where there is no git."""
    try:
        command = ["git", "describe", "--always", "--dirty=+", "--abbrev=12", "--exclude=*"]
        return subprocess.run(command, capture_output=True, text=True, timeout=5, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None
