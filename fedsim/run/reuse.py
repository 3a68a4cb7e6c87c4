"""Finished runs that a growing sweep takes over instead of computing the same bits again."""

import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from fedsim import __version__
from fedsim.base.errors import FedsimError, SettingError
from fedsim.base.files import write_json, writing
from fedsim.run.building import Tasks, build
from fedsim.run.facts import differences, identity
from fedsim.run.folders import RunFolder, flatten, plain_yaml, planned_in, read_yaml
from fedsim.run.intact import read_json
from fedsim.run.runfolder import source_hash, versions
from fedsim.scenario.loader import Loaded

ELSEWHERE = ("name", "about", "track", "checkpoint")  # settings that change neither a run's numbers nor its end
LEFT = ("mlflow.json", "lock", "*.part")  # of the run where it lies


def finished_before(group: Sequence[Loaded], root: Path, tasks: Tasks) -> dict[str, Path]:
    """By the folder's name in the sweep, the latest finished run below `root` that has each run's very bits.

    Settings, seed, end, data, own code, fedsim's own source, versions, plan and device are all the same, and its metrics are whole.
    """
    known: dict[tuple[str, int], list[RunFolder]] = {}
    for run in _finished(root / group[0].scenario.name):
        known.setdefault((str(run.info.get("hash")), int(run.info.get("seed", -1))), []).append(run)
    found: dict[str, Path] = {}
    for loaded in group:
        settings = _telling(plain_yaml(loaded.resolved, loaded.folder))
        alike = [run for run in known.get((loaded.hash, loaded.seed), ()) if _settings(run) == settings]
        if alike and (place := _same_bits(loaded, alike, tasks)):
            found[loaded.folder] = place
    return found


def take_over(old: Path, new: Path, loaded: Loaded) -> None:
    """A copy of a finished run in a sweep's folder, whole or not at all, which says where it comes from. Raises RunError."""
    draft = new.with_name(f"{new.name}.part")
    with writing(new):
        shutil.rmtree(draft, ignore_errors=True)
        shutil.copytree(old, draft, symlinks=True, ignore=shutil.ignore_patterns(*LEFT))
    names = {"name": loaded.scenario.name, "label": loaded.label, "variant": loaded.variant, "changed": dict(loaded.changed)}
    write_json(draft / "run.json", read_json(draft / "run.json") | names | {"taken_from": str(old)})
    with writing(new):
        draft.replace(new)


def _finished(place: Path) -> Iterator[RunFolder]:
    """The finished runs of a scenario's folders, the latest first."""
    for upper in sorted((one for one in place.glob("*") if one.is_dir() and not one.is_symlink()), reverse=True):
        try:
            for path in planned_in(upper) if (upper / "sweep.json").exists() else [upper]:
                run = RunFolder(path)
                if (path / "run.json").exists() and run.info.get("status") == "finished" and run.info.get("source") == source_hash():
                    yield run
        except FedsimError:  # a damaged one is not taken over
            continue


def _settings(run: RunFolder) -> dict[str, str] | None:
    """What a finished run's bits and end follow from; None where that can't be read."""
    try:
        return _telling(read_yaml(run.path / "scenario.yaml"))
    except FedsimError:
        return None


def _telling(content: Any) -> dict[str, str]:
    return {key: text for key, text in flatten(content) if key.partition(".")[0] not in ELSEWHERE}


def _same_bits(loaded: Loaded, runs: Sequence[RunFolder], tasks: Tasks) -> Path | None:
    """The first that is what this run would be now, and whole."""
    try:
        run = build(loaded, tasks)
    except SettingError:  # told when its turn comes
        return None
    now: dict[str, Any] = identity(run.facts | {"version": __version__, "versions": versions()})
    run.fed.worker.close()
    for one in runs:
        try:
            one.check_end()
            one.metrics  # noqa: B018 - which says where a line is damaged
        except FedsimError:
            continue
        if not differences(identity(one.info), now):
            return one.path
    return None
