"""Writing a run's folder: the truth about a run, readable at any moment of it."""

import importlib.metadata
import json
import os
import platform
import shutil
import subprocess
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from time import monotonic
from typing import Any

import numpy as np
import safetensors.torch
from torch import Tensor

from fedsim import __version__
from fedsim.errors import FedsimError
from fedsim.rows import Layout

PACKAGES = ("torch", "numpy", "flwr", "mlflow", "pydantic", "pyarrow")


def write_json(file: Path, content: dict[str, Any]) -> None:
    """Complete or not at all."""
    draft = file.with_suffix(".part")
    draft.write_text(json.dumps(content, indent=1) + "\n")
    draft.replace(file)


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
    """One run's files but its events: scenario.yaml, run.json, metrics.jsonl, log.txt, model.safetensors, labels.npz, parts/."""

    def __init__(self, folder: Path, resolved: str, info: dict[str, Any], own: Sequence[Path] = ()) -> None:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            (folder / "scenario.yaml").write_text(resolved)
            self.metrics_file = (folder / "metrics.jsonl").open("w")
        except OSError as error:
            raise FedsimError(f"{folder}: can't write the run's folder: {error.strerror}") from error
        self.folder, self.began = folder, monotonic()
        self.info = info | {"status": "running", "version": __version__, "versions": versions(), "commit": commit()}
        self.info["created"] = datetime.now(UTC).isoformat(timespec="seconds")
        if own:
            (folder / "parts").mkdir()
            for file in own:
                shutil.copy2(file, folder / "parts")
        self.update()

    def update(self, **changes: Any) -> None:
        """Writes run.json anew."""
        self.info |= changes
        write_json(self.folder / "run.json", self.info)

    def metrics(self, record: dict[str, Any]) -> None:
        """One line, flushed."""
        self.metrics_file.write(json.dumps(record) + "\n")
        self.metrics_file.flush()

    def log(self, text: str) -> None:
        """A line with the wall seconds since the start."""
        with (self.folder / "log.txt").open("a") as file:
            file.write(f"{monotonic() - self.began:9.2f} s  {text}\n")

    def model(self, models: Tensor, layout: Layout) -> None:
        """The models [h, d] by parameter name; a server's one without the leading axis."""
        rows = {name: view.cpu().contiguous() for name, view in layout.views(models[0] if len(models) == 1 else models).items()}
        draft = self.folder / "model.part"
        safetensors.torch.save_file(rows, draft)
        draft.replace(self.folder / "model.safetensors")

    def labels(self, counts: Tensor) -> None:
        """Samples of each node and class, int64 [nodes, classes]."""
        if counts.shape[1]:
            np.savez_compressed(self.folder / "labels.npz", counts=counts.cpu().numpy())


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
