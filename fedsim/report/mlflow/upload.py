"""Run folders to MLflow. The folder is the truth: an upload adds what is missing and can be repeated at any time."""

import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path

from fedsim import __version__
from fedsim.base.address import hide, whole
from fedsim.base.errors import FedsimError
from fedsim.report.mlflow.facts import began, ended, tags_of, whose, written
from fedsim.report.mlflow.model import log_model
from fedsim.report.mlflow.names import LONGEST as LONGEST_NAME
from fedsim.report.mlflow.names import taken, told
from fedsim.report.mlflow.parent import data_of, differing, over_seeds
from fedsim.report.mlflow.places import in_memory, uri_of, whole_uri
from fedsim.report.mlflow.points import batches, numbers_of
from fedsim.report.mlflow.store import PATIENCE, LockedError, Store, UploadError, opened
from fedsim.report.mlflow.system import Machine
from fedsim.report.mlflow.turns import BusyError, turn
from fedsim.report.mlflow.uploaded import Uploaded
from fedsim.run.folders import FINAL, RunFolder, runs_in
from fedsim.run.intact import read_json

ENDS = {"finished": "FINISHED", "failed": "FAILED", "stopped": "KILLED"}
LONGEST = {"params": 500, "tags": 5000}  # characters of a value; the whole is in the artifact scenario.yaml
MOST = {"metrics": 1000, "params": 100, "tags": 100}  # entries of a request
LOGGED = "logged model"  # among the artifacts
Whole = dict[Path, tuple[int, dict[str, str]]]  # of runs, the number of evaluations, and the names that are others there
FILES = ("scenario.yaml", "run.json", "metrics.jsonl", "events", "figures", "model.safetensors")


def default_uri(folder: Path) -> str:
    """MLFLOW_TRACKING_URI, else an SQLite file beside the runs: runs/mlflow.db for runs/<name>/<stamp>[/<variant>]."""
    upper = folder.absolute().parent if (folder.parent / "sweep.json").exists() else folder.absolute()
    return os.environ.get("MLFLOW_TRACKING_URI") or uri_of(upper.parent.parent / "mlflow.db")


def upload(
    folder: Path,
    uri: str | None = None,
    experiment: str | None = None,
    machine: Machine | None = None,
    whole: Whole | None = None,
) -> str:
    """Uploads what is missing of a run or a sweep, and how busy the `machine` was; says in one line what was done.

    `uri` and `experiment` are by default those of the scenario. Of several runs those in `whole` are not looked at; those that are at their
    end, and there now, are added to it (a lone run gets pictures after its end). Raises
    UploadError where MLflow can't be reached or refuses, LockedError where others are at it for long, FedsimError where it is no run.
    """
    runs = runs_in(folder)
    if not runs:
        raise FedsimError(f"{folder}: no run to upload")
    place = address(folder, uri)
    lead = _lead(runs)
    experiment = experiment or written(lead.parameters.get("track.experiment")) or str(lead.info.get("name", "fedsim"))
    upper = runs[0].path.parent if (runs[0].path.parent / "sweep.json").exists() else runs[0].path
    whole = {} if whole is None else whole
    try:
        with turn(upper / "mlflow.lock", PATIENCE), opened(place, experiment[:500]) as store:
            changed = _runs(store, upper, runs, upper != runs[0].path and not (folder / "run.json").exists(), whole)
            if machine:
                _machine(store, Uploaded.of(upper, store.uri, store.experiment), machine)
    except BusyError as error:
        raise LockedError(str(error)) from None
    except OSError as error:
        raise UploadError(f"{upper}: what is uploaded can't be written down there: {error.strerror}") from None
    points = sum(whole[run.path][0] if run.path in whole else len(run.metrics) for run in runs)
    notes = [told(changed), f"MLflow refused {', '.join(list(dict.fromkeys(store.refused))[:3])}" if store.refused else ""]
    said = "; ".join(note for note in notes if note)
    return f"{experiment}: {len(runs)} run{'s' if len(runs) > 1 else ''}, {points} evaluations at {hide(place)}{'; ' if said else ''}{said}"


def address(folder: Path, uri: str | None = None) -> str:
    """Where a run or a sweep is uploaded to, by default where its scenario says.

    Raises FedsimError where its password can't be had, and where it would keep nothing.
    """
    runs = runs_in(folder)
    own = written(_lead(runs).parameters.get("track.uri")) if runs else None
    try:
        place = whole(whole_uri(uri or own or default_uri(folder)))
    except ValueError as error:
        raise FedsimError(f"track.uri: {error}") from None
    if in_memory(place):
        raise FedsimError(f"track.uri: {place} is a store in memory, which keeps nothing; name a file: sqlite:///runs/mlflow.db")
    return place


def _lead(runs: Sequence[RunFolder]) -> RunFolder:
    """The first whose files can be read: it tells what a sweep's runs have in common."""
    for run in runs:
        with suppress(FedsimError):
            if run.info.keys() | run.parameters.keys():
                return run
    return runs[0]


def _runs(store: Store, folder: Path, runs: Sequence[RunFolder], upper: bool, whole: Whole) -> dict[str, str]:
    """All runs, with `upper` of a sweep and its own, also where one fails, as long as MLflow answers; the names that they have there.

    Raises the first error.
    """
    lead = _lead(runs)
    label, started = folder.absolute().name, began(lead)
    own = {"fedsim.version": __version__} | whose(lead)
    parent = _uploaded(store, folder, label, started, own).run_id if upper else _parent_of(store, runs[0])
    steps = [partial(_run, store, run, parent, whole) for run in runs if len(runs) == 1 or run.path not in whole]
    steps += [partial(_upper, store, folder, runs)] * upper
    changed, first = {old: new for _, names in whole.values() for old, new in names.items()}, None
    for step in steps:
        try:
            changed |= step()
        except Exception as error:  # told by `opened`
            first = first or error
            if not store.alive():
                break
    if first:
        raise first
    return changed


def _machine(store: Store, kept: Uploaded, machine: Machine) -> None:
    """What the machine was busy with since the last time."""
    from mlflow.entities import Metric

    points = [Metric(f"system/{name}", value, at, step) for at, step, values in machine.taken() for name, value in values.items()]
    store.log(kept.run_id, "metrics", points, MOST["metrics"])


def _uploaded(store: Store, folder: Path, label: str, started: int, kin: Mapping[str, str]) -> Uploaded:
    """The folder's mlflow.json with a run that exists: what was uploaded before, unless that was deleted there."""
    from mlflow.exceptions import MlflowException

    kept = Uploaded.of(folder, store.uri, store.experiment)
    if kept.run_id:
        try:
            if store.client.get_run(kept.run_id).info.lifecycle_stage == "active":
                return kept
        except MlflowException as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise
    new, tags = Uploaded(store.uri, store.experiment), {"fedsim.folder": str(folder.absolute()), **kin}
    made = _known(store, tags["fedsim.folder"], started) if (folder / "mlflow.json").exists() else None
    if made is None:
        new.save(folder)  # before there is one, so that it is found again where its id could not be written down any more
        made = str(store.client.create_run(store.experiment_id, started, tags, label[:LONGEST_NAME]).info.run_id)
    new.run_id = made
    new.save(folder)
    return new


def _known(store: Store, folder: str, started: int) -> str | None:
    """The run that an earlier upload made for a folder, where the folder has forgotten its id."""
    found = store.client.search_runs([store.experiment_id], f"attributes.start_time = {started}")
    return next((str(run.info.run_id) for run in found if run.data.tags.get("fedsim.folder") == folder), None)


def _files(store: Store, folder: Path, kept: Uploaded, names: Sequence[str]) -> None:
    """Uploads those files (of folders: all files) that are new or have changed."""
    paths = [path for name in names for path in ([folder / name] if (folder / name).is_file() else sorted((folder / name).glob("*.*")))]
    for path in paths:
        name, state = str(path.relative_to(folder)), f"{path.stat().st_size} {path.stat().st_mtime_ns}"
        if kept.artifacts.get(name) != state:
            store.client.log_artifact(kept.run_id, str(path), str(Path(name).parent) if "/" in name else None)
            kept.artifacts[name] = state
            kept.save(folder)


def _finish(store: Store, folder: Path, kept: Uploaded, status: str, at: int) -> None:
    """FINISHED, FAILED or KILLED, with `at` as the end (milliseconds since 1970); RUNNING again for a resumed run."""
    if status == kept.status:
        return
    if status in FINAL:
        store.client.set_terminated(kept.run_id, ENDS[status], at)
    elif kept.status:
        store.client.update_run(kept.run_id, "RUNNING")
    kept.status = status
    kept.save(folder)


def _upper(store: Store, folder: Path, runs: Sequence[RunFolder]) -> dict[str, str]:
    """The end of a sweep's own run, whose children the runs are; means over their seeds, once all have come to their end."""
    kept, statuses = Uploaded.of(folder, store.uri, store.experiment), [str(run.info.get("status")) for run in runs]
    all_there = len(runs) == len(read_json(folder / "sweep.json").get("runs", []))
    if all(status in FINAL for status in statuses):
        if all_there and not kept.parameters and "stopped" not in statuses:
            _over_seeds(store, folder, kept, runs)
        worst = next((bad for bad in ("failed", "stopped") if bad in statuses), "finished" if all_there else "stopped")
        _finish(store, folder, kept, worst, max(map(ended, runs)))
        _files(store, folder, kept, ("sweep.json", "figures"))
    return {}


def _over_seeds(store: Store, folder: Path, kept: Uploaded, runs: Sequence[RunFolder]) -> None:
    """What `mlflow_parent` says of them."""
    from mlflow.entities import Metric

    points, at = list(over_seeds(runs)), began(runs[0])
    names = taken(name for name, *_ in points)
    store.log(kept.run_id, "metrics", [Metric(names[name], value, at, step) for name, step, value in points], MOST["metrics"])
    _log(store, kept.run_id, "params", differing(runs))
    kept.parameters = True
    kept.save(folder)


def _parent_of(store: Store, run: RunFolder) -> str:
    """The sweep's run in the store, for a run that is uploaded alone."""
    upper = run.path.parent
    return Uploaded.of(upper, store.uri, store.experiment).run_id if (upper / "sweep.json").exists() else ""


def _run(store: Store, run: RunFolder, parent: str, whole: Whole) -> dict[str, str]:
    """What is missing of one run, which is closed there whatever else can't be sent; the names of its metrics, parameters and tags."""
    kin = {"mlflow.parentRunId": parent} if parent else {}
    kept = _uploaded(store, run.path, run.label, began(run), kin)
    status = str(run.info.get("status"))
    try:
        changed = _settings(store, run, kept)
        changed = _evaluations(store, run, kept) | changed
        if status in FINAL:
            if status != kept.status:
                ends = {f"fedsim.{key}": str(run.info[key]) for key in ("model", "reason") if run.info.get(key)}
                _log(store, kept.run_id, "tags", ends)
            _files(store, run.path, kept, FILES)
            if status == "finished" and run.parameters.get("track.models") == "true" and LOGGED not in kept.artifacts:
                log_model(store.whole_uri, run, kept.run_id)
                kept.artifacts[LOGGED] = str(run.info.get("model"))
                kept.save(run.path)
    except Exception:
        with suppress(Exception):  # what went wrong first is told
            _finish(store, run.path, kept, status, ended(run))
        raise
    _finish(store, run.path, kept, status, ended(run))
    if status in FINAL:
        whole[run.path] = len(run.metrics), {old: new for old, new in changed.items() if old != new}
    return changed


def _settings(store: Store, run: RunFolder, kept: Uploaded) -> dict[str, str]:
    """Parameters and tags; what is sent a second time is the same as before."""
    settings, tags = {key: text for key, text in run.parameters.items() if written(text) is not None}, tags_of(run)
    if not kept.parameters:
        _dataset(store, run, kept)
        _log(store, kept.run_id, "params", settings)
        _log(store, kept.run_id, "tags", tags)
        kept.parameters = True
        kept.save(run.path)
    return taken(settings) | taken(tags)


def _dataset(store: Store, run: RunFolder, kept: Uploaded) -> None:
    from mlflow.entities import Dataset, DatasetInput, InputTag

    known = data_of(run)
    if known["digest"]:
        one = Dataset(source_type="fedsim", **known)
        store.client.log_inputs(kept.run_id, [DatasetInput(one, [InputTag("mlflow.data.context", "training")])])


def _log(store: Store, run_id: str, kind: str, texts: Mapping[str, str]) -> None:
    """Parameters or tags by MLflow's names, long values cut short."""
    from mlflow.entities import Param, RunTag

    make = Param if kind == "params" else RunTag
    store.log(run_id, kind, [make(name, texts[key][: LONGEST[kind]]) for key, name in taken(texts).items()], MOST[kind])


def _evaluations(store: Store, run: RunFolder, kept: Uploaded) -> dict[str, str]:
    """The evaluations that are not there yet; the names of all metrics."""
    from mlflow.entities import Metric

    started, points = began(run), [numbers_of(record) for record in run.metrics]
    names = taken(name for one in points for name, *_ in one)
    for stop, batch in batches(points, kept.metrics, MOST["metrics"]):
        metrics = [
            Metric(names[name], value, started + int(1000 * run.metrics[at].get("time/wall_seconds", 0.0)), step)
            for at, name, value, step in batch
        ]
        store.log(kept.run_id, "metrics", metrics, MOST["metrics"])
        kept.metrics = stop
        kept.save(run.path)
    return names
