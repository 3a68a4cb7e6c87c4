"""Run folders to MLflow. The folder is the truth: an upload adds what is missing and can be repeated at any time."""

import json
import logging
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

from fedsim import __version__
from fedsim.errors import FedsimError
from fedsim.report.folders import FINAL, RunFolder, runs_in
from fedsim.report.intact import read_json

ENDS = {"finished": "FINISHED", "failed": "FAILED", "stopped": "KILLED"}
AXES = {"by_second": ("time/seconds", 1), "by_kilobyte": ("traffic/bytes", 1000)}
AGAIN = ("accuracy", "loss")  # logged once more along each of AXES
LONGEST = 500  # characters of a parameter; the whole is in the artifact scenario.yaml
QUIET = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "DO_NOT_TRACK": "true",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
    "MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR": "1",
    "GIT_PYTHON_REFRESH": "quiet",
}


class UploadError(FedsimError):
    """MLflow could not be reached or refused; the run's folder has everything."""


@dataclass
class Ledger:
    """mlflow.json of a run: where it is uploaded to and how much of it."""

    uri: str
    experiment: str
    run_id: str = ""
    metrics: int = 0
    parameters: bool = False
    status: str = ""
    artifacts: dict[str, str] = field(default_factory=dict)

    @classmethod
    def of(cls, folder: Path, uri: str, experiment: str) -> "Ledger":
        """What is kept for this store and experiment, else an empty one."""
        file = folder / "mlflow.json"
        kept = read_json(file) if file.exists() else {}
        return cls(**kept) if (kept.get("uri"), kept.get("experiment")) == (uri, experiment) else cls(uri, experiment)

    def save(self, folder: Path) -> None:
        new = folder / "mlflow.json.new"
        new.write_text(json.dumps(vars(self), indent=1) + "\n")
        new.replace(folder / "mlflow.json")


def default_uri(folder: Path) -> str:
    """MLFLOW_TRACKING_URI, else an SQLite file beside the runs: runs/mlflow.db for runs/<name>/<stamp>[/<variant>]."""
    upper = folder.absolute().parent if (folder.parent / "sweep.json").exists() else folder.absolute()
    return os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{upper.parent.parent / 'mlflow.db'}"


def whole_uri(uri: str) -> str:
    """`sqlite:///runs/mlflow.db` with the absolute path, so that the working folder does not matter later."""
    path = re.fullmatch(r"sqlite:///([^/].*)", uri)
    return f"sqlite:///{Path(path[1]).absolute()}" if path else uri


class Store:
    """One MLflow store and experiment. Raises UploadError, in one line, where MLflow does."""

    def __init__(self, uri: str, experiment: str) -> None:
        for name, value in QUIET.items():
            os.environ.setdefault(name, value)
        import mlflow

        for name in ("mlflow", "alembic", "urllib3"):
            logging.getLogger(name).setLevel(logging.ERROR)
        self.uri, self.experiment = uri, experiment
        self.client = mlflow.MlflowClient(uri)
        self.experiment_id = self._experiment()

    def _experiment(self) -> str:
        found = self.client.get_experiment_by_name(self.experiment)
        if found is not None:
            return str(found.experiment_id)
        database = re.fullmatch(r"sqlite:///(/.*)", self.uri)
        place = (Path(database[1]).parent / "mlartifacts").as_uri() if database else None
        return str(self.client.create_experiment(self.experiment, artifact_location=place))

    def ledger(self, folder: Path, label: str, started: int, tags: Callable[[], Mapping[str, str]]) -> Ledger:
        """The folder's ledger with a run that exists."""
        from mlflow.exceptions import MlflowException

        kept = Ledger.of(folder, self.uri, self.experiment)
        if kept.run_id:
            try:
                self.client.get_run(kept.run_id)
                return kept
            except MlflowException as error:
                if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                    raise
        new = Ledger(self.uri, self.experiment)
        new.run_id = self.client.create_run(self.experiment_id, started, dict(tags()), label).info.run_id
        new.save(folder)
        return new

    def files(self, folder: Path, kept: Ledger, names: Sequence[str]) -> None:
        """Uploads those files (of folders: all files) that are new or have changed."""
        paths = [path for name in names for path in ([folder / name] if (folder / name).is_file() else sorted((folder / name).glob("*.*")))]
        for path in paths:
            name, state = str(path.relative_to(folder)), f"{path.stat().st_size} {path.stat().st_mtime_ns}"
            if kept.artifacts.get(name) != state:
                self.client.log_artifact(kept.run_id, str(path), str(Path(name).parent) if "/" in name else None)
                kept.artifacts[name] = state
                kept.save(folder)

    def finish(self, folder: Path, kept: Ledger, status: str) -> None:
        """FINISHED, FAILED or KILLED; RUNNING again for a resumed run."""
        if status == kept.status:
            return
        if status in FINAL:
            self.client.set_terminated(kept.run_id, ENDS[status])
        elif kept.status:
            self.client.update_run(kept.run_id, "RUNNING")
        kept.status = status
        kept.save(folder)


def upload(folder: Path, uri: str | None = None, experiment: str | None = None) -> str:
    """Uploads what is missing of a run or a sweep; says in one line what was done.

    `uri` and `experiment` are by default those of the scenario. Raises UploadError where MLflow can't be reached or refuses,
    FedsimError where the folder is no run.
    """
    runs = runs_in(folder)
    if not runs:
        raise FedsimError(f"{folder}: no run to upload")
    settings = runs[0].parameters
    place = whole_uri(uri or _set(settings.get("track.uri")) or default_uri(folder))
    experiment = experiment or _set(settings.get("track.experiment")) or str(runs[0].info.get("name", "fedsim"))
    try:
        store = Store(place, experiment)
        parent = _upper(store, folder, runs) if (folder / "sweep.json").exists() else _parent_of(store, runs[0])
        for run in runs:
            _run(store, run, parent)
    except FedsimError:
        raise
    except Exception as error:  # whatever client, server, driver or disk says: none of it may reach the run as a traceback
        raise UploadError(f"MLflow at {place}: {_short(error)}") from error
    points = sum(len(run.metrics) for run in runs)
    return f"{experiment}: {len(runs)} run{'s' if len(runs) > 1 else ''}, {points} evaluations at {place}"


def _short(error: Exception) -> str:
    """The cause in a few words: what the network says, or the first line."""
    text = str(error).strip() or type(error).__name__
    cause = re.search(r"\[Errno -?\d+\] ([^'\")]+)|(timed out)", text)
    return (cause[1] or cause[2]).strip() if cause else text.splitlines()[0][:200]


def _set(text: str | None) -> str | None:
    return None if text in (None, "", "none", "null", "~") else text


def _milliseconds(run: RunFolder) -> int:
    return int(datetime.fromisoformat(str(run.info["created"])).timestamp() * 1000)


def _tags(run: RunFolder) -> dict[str, str]:
    settings = run.parameters
    own = {key.removeprefix("track.tags."): value for key, value in settings.items() if key.startswith("track.tags.")}
    known = {"version": run.info.get("version", __version__), "hash": run.info.get("hash")}
    known |= {"folder": run.path.absolute(), "clock": "virtual"}
    return own | {f"fedsim.{key}": str(value) for key, value in known.items() if value}


def _upper(store: Store, folder: Path, runs: Sequence[RunFolder]) -> str:
    """The sweep's own run, whose children the runs are."""
    tags = {"fedsim.version": __version__, "fedsim.folder": str(folder.absolute())}
    kept = store.ledger(folder, folder.absolute().name, _milliseconds(runs[0]), lambda: tags)
    statuses = [str(run.info.get("status")) for run in runs]
    all_there = len(runs) == len(read_json(folder / "sweep.json").get("runs", []))
    if all(status in FINAL for status in statuses):
        store.files(folder, kept, ("sweep.json", "figures"))
        worst = next((bad for bad in ("failed", "stopped") if bad in statuses), "finished" if all_there else "stopped")
        store.finish(folder, kept, worst)
    return kept.run_id


def _parent_of(store: Store, run: RunFolder) -> str:
    """The sweep's run in the store, for a run that is uploaded alone."""
    upper = run.path.parent
    return Ledger.of(upper, store.uri, store.experiment).run_id if (upper / "sweep.json").exists() else ""


def _run(store: Store, run: RunFolder, parent: str) -> None:
    """What is missing of one run."""
    kin = {"mlflow.parentRunId": parent} if parent else {}
    kept = store.ledger(run.path, run.label, _milliseconds(run), lambda: _tags(run) | kin)
    if not kept.parameters:
        _parameters(store, kept.run_id, run.parameters)
        kept.parameters = True
        kept.save(run.path)
    for stop, batch in _batches(run, kept.metrics):
        store.client.log_batch(kept.run_id, metrics=batch)
        kept.metrics = stop
        kept.save(run.path)
    status = str(run.info.get("status"))
    if status in FINAL and status != kept.status:
        for key in ("model", "reason"):
            if run.info.get(key):
                store.client.set_tag(kept.run_id, f"fedsim.{key}", str(run.info[key])[:LONGEST])
    if status in FINAL:
        store.files(run.path, kept, ("scenario.yaml", "run.json", "metrics.jsonl", "events", "figures", "model.safetensors"))
    store.finish(run.path, kept, status)


def _parameters(store: Store, run_id: str, settings: Mapping[str, str]) -> None:
    from mlflow.entities import Param

    params = [Param(re.sub(r"[^\w.\- :/]", "_", key), value[:LONGEST]) for key, value in settings.items()]
    for start in range(0, len(params), 100):
        store.client.log_batch(run_id, params=params[start : start + 100])


def _batches(run: RunFolder, done: int) -> Iterator[tuple[int, list[Any]]]:
    """(evaluations uploaded after it, metrics) in requests of at most 1,000 metrics."""
    started = _milliseconds(run)
    batch: list[Any] = []
    for place, record in enumerate(run.metrics[done:], start=done):
        own = _metrics(record, started)
        if len(batch) + len(own) > 1000:
            yield place, batch
            batch = []
        batch += own
    if batch:
        yield len(run.metrics), batch


def _metrics(record: Mapping[str, Any], started: int) -> list[Any]:
    """An evaluation's numbers with the round as step, accuracy and loss again with seconds and kilobytes as step.

    Their time is the run's start plus its wall seconds, so that the same line uploaded twice is the same point.
    """
    from mlflow.entities import Metric

    at, step = started + int(1000 * record.get("time/wall_seconds", 0.0)), int(record["round"])
    numbers = {name: float(value) for name, value in record.items() if isinstance(value, int | float) and name != "round"}
    metrics = [Metric(name, value, at, step) for name, value in numbers.items()]
    for prefix, (axis, unit) in AXES.items():
        again = [name for name in numbers if name.rpartition("/")[2].startswith(AGAIN) and axis in numbers]
        metrics += [Metric(f"{prefix}/{name}", numbers[name], at, int(numbers[axis] / unit)) for name in again]
    return metrics
