"""Going on with runs: from their last good checkpoint, or from the beginning where there is none, to the bits of a run never stopped."""

import zlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from difflib import SequenceMatcher
from pathlib import Path
from time import monotonic
from typing import Any

from fedsim import __version__
from fedsim.base.errors import FedsimError
from fedsim.base.files import whole, writing
from fedsim.run import checkpoint
from fedsim.run.facts import differences, identity
from fedsim.run.folders import RunFolder
from fedsim.run.intact import SEGMENT, read, read_json, read_records, read_text
from fedsim.run.runfolder import RunWriter, code_hash, keep_copies, remove, versions
from fedsim.run.runner import Run
from fedsim.scenario.copies import changed, take_new_code
from fedsim.scenario.loader import NOT_THE_QUESTION, Loaded, load

FREE = tuple(key for key in NOT_THE_QUESTION if key != "name")  # what else changes bits shows in the run's identity


def reload(folder: Path, settings: Sequence[str] = (), known: Mapping[str, Any] | None = None, new_code: bool = False) -> Loaded:
    """The scenario of a run's folder, with changed settings; `known` are `variant` and `changed`, by default those of run.json.

    `new_code`: with the user's own modules as they are now, not with the copies that the run began with.

    Raises ScenarioError where it can't be read, FedsimError for a setting that would change the question.
    """
    check_settings(settings)
    known = read_json(folder / "run.json") if known is None else known
    no_app(folder, known)
    file = folder / "scenario.yaml"
    read_text(file)
    if new_code:
        take_new_code(folder)
    try:
        [loaded] = load(file, settings)
    except RecursionError:
        raise FedsimError(f"{file}: broken (it is nested too deeply)") from None
    return replace(loaded, variant=known.get("variant", ""), changed=known.get("changed", {}))


def no_app(folder: Path, info: Mapping[str, Any]) -> None:
    """Raises FedsimError for a Flower app's run: what it keeps in its variables is nowhere written."""
    if "flower" in info:
        raise FedsimError(f"{folder}: a Flower app's run can't go on or be replayed; run it anew: {info.get('command')}")


def check_settings(settings: Sequence[str]) -> None:
    """Raises FedsimError for one that would change the question."""
    for text in settings:
        key = text.partition("=")[0].strip().removesuffix("+")
        if key.partition(".")[0] not in FREE:
            raise FedsimError(f"`{key}` can't be changed in a run that has begun; what can: {', '.join(FREE)}")


def unfinished(run: RunFolder, settings: Sequence[str]) -> bool:
    """Whether there is anything to go on with: a run that has not come to its end, or one that gets another end."""
    return run.info.get("status") != "finished" or any(text.startswith("stop") for text in settings)


def may_go_on(run: RunFolder) -> bool:
    """Whether a run that has not finished could end otherwise than it did: not where it failed by its own numbers or code."""
    return not run.info.get("again", False)


def reopen(run: Run, folder: Path, command: str = "", new_code: bool = False) -> list[str]:
    """Puts the run where its folder's last good checkpoint is; sentences on what was used instead of what.

    The folder belongs to the run from then on; where it was broken off at its end, that is all that is left to do. Raises FedsimError,
    naming the difference, where the run is another than the folder's, has gone further than its new end, or where another process is at
    work on it.
    """
    info, now = read_json(folder / "run.json"), identity(run.facts | {"version": __version__, "versions": versions()})
    if new_code:  # it alone may be another
        now.pop("code")
    _same(folder, identity(info), now)
    writer, notes = RunWriter(folder), [] if new_code else _old_code(folder)
    try:
        keep_grid(run, info)
        records, wrong = read_records(folder / "metrics.jsonl", strict=True)
        about, state = _last(folder, (len(records), wrong), notes)
        if state is not None:
            _same(folder, about["run"], now)
            checkpoint.restore(run, state, run.fed.worker.device)
            if (why := run.ended()) and _ends(reload(folder)) != _ends(run.loaded):
                raise FedsimError(f"{folder}: the run has gone further than that already ({why}); its last checkpoint is {_place(about)}")
        run.records = records[: about["records"]]
        writer.began = monotonic() - about["wall_seconds"]
        at = {"at": datetime.now(UTC).isoformat(timespec="seconds"), "round": about["round"], "command": command}
        code = code_hash(run.loaded.own)
        at |= {"code": code} if code != info.get("code") else {}
        writer.go_on(
            info | {"target": run.evaluation.target, "code": code, "resumed": [*info.get("resumed", []), at]},
            run.records,
            len(about["segments"]),
        )
        keep_copies(folder, run.loaded.own)
        rewrite(folder / "scenario.yaml", run.loaded.resolved)
        run.attach(writer)
    except BaseException:
        writer.release()
        raise
    notes.append(f"resumed from {_place(about)}")
    for note in notes:
        run.log(note)
    return notes


def _old_code(folder: Path) -> list[str]:
    """What to say where the user's own modules have changed since the run began."""
    names = ", ".join(changed(folder))
    if not names:
        return []
    return [f"own code has changed since the run began ({names}): it goes on with its copy of then; `--code new` takes the new one"]


def keep_grid(run: Run, info: Mapping[str, Any]) -> None:
    """Evaluates when the run did from its start: by default that follows from the end planned then, which may have changed since."""
    run.rounds, run.interval = info.get("evaluated", [run.rounds, run.interval])
    run.due = run.interval


def _ends(loaded: Loaded) -> dict[str, Any]:
    return {key: value for key, value in loaded.flat.items() if key.startswith("stop")}


def _place(about: Mapping[str, Any]) -> str:
    return f"the checkpoint after round {about['round']}" if about["version"] else "the beginning"


def _same(folder: Path, old: dict[str, Any], new: dict[str, Any]) -> None:
    if found := differences(old, new):  # of what the new one tells
        raise FedsimError(f"{folder} can't be resumed to the same bits: {'; '.join(found)}")


def _last(folder: Path, metrics: tuple[int, str], notes: list[str]) -> tuple[dict[str, Any], checkpoint.State | None]:
    """The last good checkpoint whose metrics and events of before are whole; later ones are deleted. Without one, the beginning.

    `metrics`: the number of whole lines, and what is wrong with the next.
    """
    for file in reversed(checkpoint.files(folder)):
        try:
            about, state = checkpoint.read(file)
            if metrics[0] < about["records"]:
                raise checkpoint.BrokenError(
                    f"metrics or events of before are missing or changed: metrics.jsonl: {metrics[1] or 'its end is missing'}"
                )
            for number, check in enumerate(about["segments"]):
                _unchanged(folder / "events" / f"{number:06d}.parquet", None, check)
            if about["log"]:
                _unchanged(folder / "messages.log", *about["log"])
            return about, state
        except checkpoint.BrokenError as error:
            notes.append(f"{file.name} is not used: {error}")
            with writing(file):
                remove(file)
    return {"round": 0, "version": 0, "records": 0, "segments": [], "wall_seconds": 0.0}, None


def _unchanged(file: Path, length: int | None, check: int) -> None:
    """Raises BrokenError where the file's first bytes (None: all) are not those that were written."""
    try:
        if read(file, lambda raw: zlib.crc32(raw[:length]), SEGMENT) != check:
            raise FedsimError(f"{file} was changed, or its end is missing: its checksum is wrong")
    except FedsimError as error:
        raise checkpoint.BrokenError(f"metrics or events of before are missing or changed: {error}") from error


def rewrite(file: Path, resolved: str) -> None:
    """A run's scenario.yaml with changed settings: lines that stay keep their comments of where each setting came from."""
    old, new = read_text(file).splitlines(), resolved.splitlines()
    before, after = ([line.partition("  # ")[0] for line in lines] for lines in (old, new))
    kept = [
        line
        for kind, a, b, c, d in SequenceMatcher(None, before, after, autojunk=False).get_opcodes()
        for line in (old[a:b] if kind == "equal" else new[c:d])
    ]
    if kept != old:
        with whole(file) as draft:
            draft.write_text("\n".join(kept) + "\n")
