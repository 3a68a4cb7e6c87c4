"""Resumed = uninterrupted, in bits: model, events and metrics; and what a resume refuses."""

import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from launch import FORKED, TASKS, TEXT, call, resumed, same, simulate, write

from fedsim.base.errors import FedsimError
from fedsim.base.keys import below, fold
from fedsim.federation.ledger import Ledger
from fedsim.federation.replicas import Replicas
from fedsim.run import checkpoint
from fedsim.run.building import build
from fedsim.run.folders import RunFolder, find_runs
from fedsim.run.resume import reload, reopen
from fedsim.run.runfolder import lock
from fedsim.run.runner import Run
from fedsim.scenario import load

PLAIN = ("stop.rounds=12", "engine.plan=looped", "checkpoint=2 rounds")
RARE = ("world.availability={name: bernoulli, chance: 70 %}", "world.faults={crash: 20 %, lost: 20 %}")
TOP = "{name: ef21, inner: {name: topk, fraction: 5 %}}"
KINDS = {
    "rounds": (),
    "late": ("schedule={name: rounds, cohort: 6, wait_for: 3, late: keep}", "strategy=fedavg", "evaluate.every=700 ms"),
    "replicas": ("strategy={name: one_byte, probes: 2}", "train=null", "schedule={name: rounds, cohort: 4}", "evaluate.every=700 ms"),
    "deadline": ("schedule={name: rounds, cohort: all, deadline: 2 s}", *RARE),
    "buffered": ("strategy=fedbuff", "schedule={name: buffered, size: 3, concurrency: 5}", "evaluate.every=1 s"),
    "unreliable": ("strategy=fedbuff", "schedule={name: buffered, size: 3}", *RARE),
    "ticks": ("strategy=fedfix", "schedule={name: ticks, every: 900 ms}", "evaluate.every=1 s"),
    "estimated frequencies": ("strategy={name: fedfix, frequencies: estimated}", "schedule={name: buffered, size: 2}", *RARE),
    "gossip": ("strategy=dsgd", "schedule=gossip", f"crosslink={TOP}"),
    "pairwise": ("strategy=dsgd", "schedule=pairwise", "checkpoint=1 rounds", "stop.rounds=4"),
    "error feedback": (f"uplink={TOP}", f"downlink={TOP}"),
    "error feedback buffered": ("strategy=fedbuff", "schedule={name: buffered, size: 2}", f"uplink={TOP}", "downlink=float16"),
    "memory": ("strategy=fedstale", "schedule={name: rounds, cohort: 3}"),
    "moments": (
        *("train.optimizer=adam", "train.state=keep", "train.lr={slow: 0.01, fast: 0.02}", "train.steps={name: linear, from: 1, to: 4}"),
        *("groups={slow: 3, fast: rest}", "schedule={name: rounds, cohort: 3, wait_for: 2}"),
    ),
    "outputs, and moments in 8 bits": (
        *("strategy={name: saf, ago: 1, after: 0}", "train.optimizer=adam", "train.state=keep_8bit", "train.clip={name: adagc, warmup: 2}"),
        *("train.lr=0.01", "schedule={name: rounds, cohort: 3, wait_for: 2}"),
    ),
    "estimated": ("strategy={name: fedvarp, chances: estimated, empty: stale}", "schedule={name: rounds, cohort: 3, wait_for: 2}"),
    "coded": (
        "strategy={name: gradient_coding, scheme: {name: m_sgc, burst: 1, window: 2, stragglers: 2}, models: 2, batch: 64}",
        "train=null",
        "schedule=null",
    ),
    "changes both ways": (
        "strategy={name: ef21, lr: 0.1, momentum: 0.5, first: full}",
        "train=null",
        "schedule={name: rounds, cohort: 3}",
        "uplink={name: topk, fraction: 5 %}",
        "downlink=topk",
        *RARE,
    ),
    "last updates": ("strategy=mifa", "schedule={name: buffered, size: 2, restart: merge}"),
}


class Killed(BaseException):
    """Nothing catches it, so nothing is tidied up."""


def killed(folder: Path, settings: tuple[str, ...], events: int, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run that ends within one of the federation's verbs, after so many events, as if the process had been killed there."""

    def add(ledger: Ledger, kind: str, count: int = 1, **columns: Any) -> None:
        if ledger.events + count > events:
            raise Killed
        usual(ledger, kind, count, **columns)

    [loaded] = load(write(folder), settings)
    run, usual = build(loaded, TASKS), Ledger.add
    with monkeypatch.context() as patch:
        patch.setattr(Ledger, "add", add)
        run.open(folder / "killed")
        run.guard.start(run)
        with pytest.raises(Killed):
            run.fed.run()
    assert run.writer
    run.writer.release()
    return folder / "killed"


@pytest.mark.parametrize("kind", KINDS)
def test_resumed_is_uninterrupted(folder: Path, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    """Killed at two keyed moments, the second time after it was resumed from the first."""
    settings = (*PLAIN, *KINDS[kind])
    whole = simulate(folder, *settings, "checkpoint=none", into="whole")
    moments = sorted(below(fold(0, kind), 2, len(whole.columns["time"])).tolist())
    path = killed(folder, settings, moments[0], monkeypatch)
    same(whole, resumed(path))
    [at] = RunFolder(path).info["resumed"]
    done = [file.name for file in checkpoint.files(path)]
    assert len(done) == 2 and at["round"] <= 12
    (path / "metrics.jsonl").unlink()
    path.rename(folder / "first")
    same(whole, resumed(killed(folder, settings, moments[1], monkeypatch)))


def test_without_a_checkpoint_from_the_beginning(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = simulate(folder, *PLAIN, into="whole")
    path = killed(folder, (*PLAIN, "checkpoint=none"), 70, monkeypatch)
    assert not checkpoint.files(path)
    same(whole, resumed(path))


# Nothing that changes is forgotten

DERIVED = {  # made again from what is kept, or of no consequence
    *("Run.records", "Run.writer", "Run.began", "Run.flushed", "Run.wall", "Run.reason", "Run.guard"),
    *("Federation._frequency", "Tiers.known", "Worker.planned"),
    *("Task.known", "Flight.effort", "Ledger.rows", "Ledger.used", "Ledger.folder", "Memories.rows"),
    *(
        "Guard.saved",
        "Guard.turn",
        "Pace.top",
        "Pace.longest",
        "Guard.held",
        "RunWriter.info",
        "RunWriter.began",
        "MessageLog.file",
        "MessageLog.waiting",
    ),
}


def prints(value: Any, path: str, into: dict[str, Any], seen: set[int]) -> None:
    """A fingerprint of each attribute that can be reached from an object of ours, by `Class.attribute` and its place."""
    if id(value) in seen or not type(value).__module__.startswith(("fedsim.", "strategies.")):
        return
    seen.add(id(value))
    for name, inner in getattr(value, "__dict__", {}).items():
        into[f"{path}/{type(value).__name__}.{name}"] = fingerprint(inner)
        prints(inner, f"{path}/{type(value).__name__}.{name}", into, seen)


def fingerprint(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        return (tuple(value.shape), value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    if isinstance(value, np.ndarray):
        return (value.shape, value.tobytes())
    if isinstance(value, dict):
        return {key: fingerprint(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [fingerprint(item) for item in value]
    return value if isinstance(value, int | float | str | type(None)) else type(value).__name__


@pytest.mark.parametrize("kind", KINDS)
def test_everything_that_changes_is_kept(folder: Path, kind: str) -> None:
    [loaded] = load(write(folder), [*PLAIN, *KINDS[kind]])
    run = build(loaded, TASKS)
    before, after = dict[str, Any](), dict[str, Any]()
    prints(run, "", before, set())
    run.execute(folder / "run")
    prints(run, "", after, set())
    changed = {path for path in after if after[path] != before.get(path, after[path])}
    places = {path.rpartition("/")[2] for path in changed}
    assert {"Federation.version", "Flight.turn", "Blocks.next"} <= places
    kept = {f"{type_.__name__}.{name}" for type_ in classes(run) for name in getattr(type_, "keeps", ())}
    assert places - kept <= DERIVED


def classes(run: Run) -> set[type]:
    fed = run.fed
    parts = [run, run.best, fed, fed.flight, fed.down, fed.cross, fed.ledger, fed.worker, *fed.companions.values()]
    return {
        type(part)
        for part in [
            *parts,
            fed.flight.queue,
            fed.flight.mail,
            fed.flight.memory,
            *(one.log for one in fed.companions.values() if isinstance(one, Replicas)),
        ]
    }


def test_a_state_goes_into_a_fresh_run_and_comes_out_the_same(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = killed(folder, (*PLAIN, *KINDS["error feedback buffered"]), 60, monkeypatch)
    about, state = checkpoint.read(checkpoint.files(path)[-1])
    run = build(reload(path), TASKS)
    checkpoint.restore(run, state)
    again = checkpoint.collect(run)
    assert again.tree == state.tree and about["version"] == run.fed.version > 0
    assert [fingerprint(value) for value in again.arrays] == [fingerprint(value) for value in state.arrays]


# Longer


@pytest.mark.parametrize("kind", ["rounds", "buffered", "ticks", "gossip"])
def test_lengthened_is_the_longer_run(folder: Path, kind: str) -> None:
    longer = simulate(folder, *PLAIN, *KINDS[kind], "stop.rounds=20", "evaluate.every=2 rounds", into="longer")
    path = simulate(folder, *PLAIN, *KINDS[kind], "evaluate.every=2 rounds", into="short").path
    same(longer, resumed(path, "stop.rounds=20"))
    written = (path / "scenario.yaml").read_text()
    assert "rounds: 20  # command line" in written and "lr: 0.1  # small.yaml:3" in written


def test_lengthened_evaluates_as_before(folder: Path) -> None:
    """By default 100 times a run: each round of the first 12, and each round of the 12 added."""
    path = simulate(folder, *PLAIN, into="short").path
    assert [record["round"] for record in resumed(path, "stop.rounds=120").metrics] == list(range(121))


# Broken files


@pytest.fixture
def half(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run killed in round 8 or so."""
    return killed(folder, PLAIN, 110, monkeypatch)


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda raw: raw[: len(raw) // 2], "its end is missing"),
        (lambda raw: raw[:-1], "its end is missing"),
        (lambda raw: b"", "does not begin as a checkpoint"),
        (lambda raw: raw[:100] + b"?" + raw[101:], "it "),
        (lambda raw: raw[:-100] + bytes([raw[-100] ^ 1]) + raw[-99:], "its checksum is wrong"),
        (lambda raw: raw + b"?", "its end is missing"),
    ],
)
def test_a_broken_checkpoint_gives_way_to_the_one_before(folder: Path, half: Path, spoil: Any, said: str) -> None:
    before, last = checkpoint.files(half)
    last.write_bytes(spoil(last.read_bytes()))
    run = build(reload(half), TASKS)
    notes = reopen(run, half)
    assert len(notes) == 2 and notes[0].startswith(f"{last.name} is not used: ") and said in notes[0]
    assert notes[1] == f"resumed from the checkpoint after round {int(before.stem)}"
    assert all(note in (half / "log.txt").read_text() for note in notes)
    run.execute(half)
    same(simulate(folder, *PLAIN, into="whole"), RunFolder(half))


def test_all_broken_is_the_beginning(folder: Path, half: Path) -> None:
    for file in checkpoint.files(half):
        file.write_bytes(b"nothing")
    same(simulate(folder, *PLAIN, into="whole"), resumed(half))


def test_events_that_are_missing_are_noticed(folder: Path, half: Path) -> None:
    sorted((half / "events").glob("*.parquet"))[-1].unlink()
    notes = reopen(build(reload(half), TASKS), half)
    assert "metrics or events of before are missing" in notes[0] and notes[-1].startswith("resumed from the checkpoint")


# Refused


def refusal(path: Path, *settings: str) -> str:
    before = {file: file.read_bytes() for file in path.rglob("*.*") if file.is_file()}
    result = call("resume", path, *settings)
    assert result.exit_code == 2 and not result.stdout and result.stderr.count("\n") == 1, result.output
    assert before == {file: file.read_bytes() for file in path.rglob("*.*") if file.is_file()}
    return str(result.stderr)


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("version", "0.0.1", "fedsim's version was 0.0.1, is "),
        ("data", "f00", "the data's hash was f00, is "),
        ("threads", 4, "threads was 4, is 1"),
        ("chunk", 7, "chunk was 7, is "),
        ("plan", "stacked", "plan was stacked, is looped"),
    ],
)
def test_another_version_or_data_or_engine(half: Path, key: str, value: Any, said: str) -> None:
    info = json.loads((half / "run.json").read_text())
    (half / "run.json").write_text(json.dumps(info | {key: value}))
    message = refusal(half)
    assert "can't be resumed to the same bits: " in message and said in message


def test_another_torch(half: Path) -> None:
    info = json.loads((half / "run.json").read_text())
    info["versions"]["torch"] = "1.0"
    (half / "run.json").write_text(json.dumps(info))
    assert f"torch was 1.0, is {torch.__version__.partition('+')[0]}" in refusal(half)


def test_another_seed(half: Path) -> None:
    file = half / "scenario.yaml"
    file.write_text(file.read_text().replace("seed: 0 ", "seed: 5 ", 1))
    assert "seed was 0, is 5" in refusal(half)


@pytest.mark.parametrize("setting", ["seed=1", "train.lr=0.2", "task.data=mnist", "name=other", "evaluate.every=3 rounds"])
def test_settings_of_the_question(half: Path, setting: str) -> None:
    key = setting.partition("=")[0]
    assert f"`{key}` can't be changed in a run that has begun; what can: about, track, checkpoint" in refusal(half, setting)


def test_an_engine_with_other_bits(half: Path) -> None:
    assert "chunk was 4, is 2" in refusal(half, "engine.chunk=2")


def test_an_end_that_is_past(half: Path) -> None:
    assert "the run has gone further than that already (2 rounds)" in refusal(half, "stop.rounds=2")


def test_a_finished_run_says_how_it_is_lengthened(folder: Path) -> None:
    path = simulate(folder, *PLAIN).path
    assert "is finished; it goes on with another end, such as: fedsim resume " in (said := refusal(path)) and "stop.rounds=24" in said


def test_nothing_there(folder: Path) -> None:
    result = call("resume", "nothing")
    assert result.exit_code == 2 and "no run `nothing`" in result.stderr


def hold(folder: Path, pipe: Any) -> None:
    """What another process does: it locks a run's folder until it is killed, or says why it can't."""
    try:
        lock(folder)
        pipe.send("held")
        pipe.recv()
    except FedsimError as error:
        pipe.send(str(error))


def other(folder: Path) -> tuple[Any, str]:
    """A process that holds a run's folder, or was refused, and what it said."""
    ours, theirs = FORKED.Pipe()
    process = FORKED.Process(target=hold, args=(folder, theirs))
    process.start()
    process.pipe = ours  # kept: it ends with its pipe
    return process, str(ours.recv())


def test_two_at_once(half: Path) -> None:
    process, said = other(half)
    assert said == "held"
    assert f"process {process.pid} is at work on it" in refusal(half)
    process.kill()
    process.join()
    assert resumed(half).info["status"] == "finished"  # a lock dies with its process


def test_a_run_is_locked_while_it_lasts(folder: Path) -> None:
    [loaded] = load(write(folder), PLAIN)
    run = build(loaded, TASKS)
    run.open(folder / "run")
    process, said = other(folder / "run")
    assert f"process {os.getpid()} is at work on it" in said
    process.join()
    run.execute(folder / "run")
    process, said = other(folder / "run")
    assert said == "held"
    process.kill()
    process.join()


# Sweeps


def test_a_sweep_goes_on_with_those_that_are_not_finished(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of four runs one is finished, one is stopped, and two never began."""

    def running(run: Run, fed: Any) -> bool:
        if run.loaded.seed == 1 and fed.round == 3:
            raise KeyboardInterrupt
        return usual(run, fed)

    usual = Run.running
    write(folder, TEXT.replace("track: none", "track: none\nsweep: {seeds: 0..3}"))
    with monkeypatch.context() as patch:
        patch.setattr(Run, "running", running)
        stopped = call("run", "small.yaml", "engine.plan=looped", "checkpoint=1 rounds")
    assert stopped.exit_code == 130 and stopped.stdout.splitlines()[-1] == "resume with: fedsim resume small"
    assert [run.info["status"] for run in find_runs(["small"])] == ["finished", "stopped"]
    again = call("resume", "small")
    assert again.exit_code == 0 and "finished 4 of 4" in again.stdout, again.output
    assert "seed 1 resumed from the checkpoint after round 2" in again.stdout
    runs = find_runs(["small"])
    assert [(run.info["status"], run.info["label"]) for run in runs] == [("finished", f"seed {seed}") for seed in range(4)]
    assert [len(run.info.get("resumed", [])) for run in runs] == [0, 1, 0, 0]
    for run in runs[1:3]:
        same(simulate(folder, "engine.plan=looped", f"seed={run.info['seed']}", into=f"plain{run.info['seed']}"), run)
    assert call("resume", "small").exit_code == 2


def test_one_run_of_a_sweep_is_lengthened_alone(folder: Path) -> None:
    write(folder, TEXT.replace("track: none", "track: none\nsweep: {seeds: 0..1}"))
    assert call("run", "small.yaml", "engine.plan=looped").exit_code == 0
    assert call("resume", "small/seed1", "stop.rounds=6").exit_code == 0
    assert [run.info["reason"] for run in find_runs(["small"])] == ["4 rounds", "6 rounds"]


# A full disk


@pytest.fixture
def disk(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Path]:
    """A file system of some kB."""
    place = tmp_path / "disk"
    place.mkdir()
    if subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={request.param}k", "tmpfs", place], capture_output=True, check=False
    ).returncode:
        pytest.skip("a small file system can be mounted by root only")
    yield place
    subprocess.run(["umount", place], check=True)


@pytest.mark.parametrize(("disk", "left"), [(900, "000000012"), (480, "000000001")], indirect=["disk"])
def test_a_full_disk_leaves_the_last_good_checkpoint(folder: Path, disk: Path, left: str) -> None:
    """There is room for two but not for a third, which takes the place of the first; or for one, which stays. The run goes on."""
    settings = (*PLAIN, f"uplink={TOP}", f"downlink={TOP}", "task.model={name: mlp, hidden: [60]}", "checkpoint=1 rounds")
    whole = simulate(folder, *settings, into="whole")
    assert 270_000 < checkpoint.files(whole.path)[-1].stat().st_size < 350_000
    run = simulate(folder, *settings, into=str(disk / "run"))
    same(whole, run)
    assert ("can't be written: No space left on device" in (run.path / "log.txt").read_text()) == (left == "000000001")
    last = checkpoint.files(run.path)[-1]
    assert last.stem == left and checkpoint.read(last)[0]["version"] == int(left)
    subprocess.run(["mount", "-o", "remount,size=4m", disk], check=True)
    assert resumed(run.path, "stop.rounds=14").info["reason"] == "14 rounds"


def test_what_can_not_be_kept_is_named() -> None:
    class Thing:
        keeps = ("inner",)

        def __init__(self) -> None:
            self.inner = {"a": object()}

    with pytest.raises(TypeError, match=r"Thing\.inner\['a'\]: a object can't be kept in a checkpoint"):
        checkpoint.collect(Thing())


def test_a_checkpoint_of_other_attributes_is_refused() -> None:
    class Old:
        keeps = ("a",)
        a = 1

    class New:
        keeps = ("a", "b")
        a, b = 1, 2

    with pytest.raises(FedsimError, match="New keeps other things than it has"):
        checkpoint.restore(New(), checkpoint.collect(Old()))
