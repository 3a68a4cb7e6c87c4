"""A run computed again from its folder: the same, or what differs first."""

import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from launch import TASKS, TEXT, call, resumed, simulate, write

from fedsim.run.building import build
from fedsim.run.folders import RunFolder
from fedsim.run.records import sealed
from fedsim.scenario import load

BUFFER = ("strategy=fedbuff", "schedule={name: buffered, size: 3}", "engine.plan=looped", "uplink={name: ef21}")


def change(run: RunFolder, **entries: object) -> None:
    (run.path / "run.json").write_text(json.dumps(run.info | entries))


MOMENTS = ("train.optimizer=adamw", "train.state=keep", "train.lr={name: warmup, rounds: 2, then: 0.01}", "engine.plan=looped")


@pytest.mark.parametrize("settings", [("engine.plan=looped",), BUFFER, MOMENTS, ("strategy=dsgd", "schedule=gossip", "engine.chunk=3")])
def test_the_same(folder: Path, settings: tuple[str, ...]) -> None:
    run = simulate(folder, *settings)
    result = call("replay", run.path)
    assert result.exit_code == 0, result.output
    said = f"  same: model {run.info['model'][:8]}, {len(run.columns['time'])} events, {len(run.metrics)} evaluations"
    assert result.stdout.splitlines() == [str(run.path.relative_to(folder)), said]
    assert {file.name for file in folder.iterdir()} == {"small.yaml", "run"}


def test_what_the_run_was_computed_with_is_used_again(folder: Path) -> None:
    """`auto` was the looped plan with chunks of 2 then."""
    run = simulate(folder, "engine.plan=looped", "engine.chunk=2")
    file = run.path / "scenario.yaml"
    file.write_text(file.read_text().replace("plan: looped", "plan: auto").replace("chunk: 2", "chunk: auto"))
    assert call("replay", run.path).exit_code == 0


def test_a_lengthened_run(folder: Path) -> None:
    path = simulate(folder, "engine.plan=looped").path
    assert len(resumed(path, "stop.rounds=120").metrics) == 121
    assert call("replay", path).exit_code == 0


def test_a_run_that_ended_by_the_hosts_clock(folder: Path) -> None:
    run = simulate(folder, "engine.plan=looped", "stop.rounds=null", "stop.wall=300 ms")
    assert run.info["reason"] == "300 ms of wall time"
    result = call("replay", run.path)
    assert result.exit_code == 0, result.output


def test_a_run_that_was_killed_is_compared_as_far_as_it_came(folder: Path) -> None:
    [loaded] = load(write(folder), ["engine.plan=looped", "stop.rounds=9"])
    run = build(loaded, TASKS)
    run.open(folder / "run")
    run.stop = load(write(folder), ["stop.rounds=3"])[0].scenario.stop
    run.fed.run()
    run.fed.ledger.flush()
    assert run.writer
    run.writer.release()
    result = call("replay", folder / "run")
    assert result.exit_code == 0 and "same: model none recorded" in result.stdout, result.output


def test_another_event_is_named(folder: Path) -> None:
    run = simulate(folder, *BUFFER)
    file = run.path / "events/000000.parquet"
    table = pq.read_table(file)
    nodes = table["node"].to_pylist()
    at = 7
    pq.write_table(table.set_column(2, "node", [[*nodes[:at], nodes[at] + 1, *nodes[at + 1 :]]]).cast(table.schema), file)
    result = call("replay", run.path)
    assert result.exit_code == 1
    lines = result.stdout.splitlines()
    assert lines[1] == "  different: event 8"
    assert f"node {nodes[at] + 1}, " in lines[2] and f"node {nodes[at]}, " in lines[3]


def test_another_model_and_version_are_named(folder: Path) -> None:
    run = simulate(folder, "engine.plan=looped")
    change(run, model="f" * 64, version="0.0.1", threads=1)
    result = call("replay", run.path)
    assert result.exit_code == 1
    assert f"different: model ffffffff was computed, {run.info['model'][:8]} is now" in result.stdout
    assert "fedsim's version was 0.0.1, is " in result.stdout


def test_another_evaluation_is_named(folder: Path) -> None:
    run = simulate(folder, "engine.plan=looped")
    file = run.path / "metrics.jsonl"
    lines = file.read_text().splitlines(keepends=True)
    record = run.metrics[2]
    file.write_text("".join([*lines[:2], sealed(record | {"test/loss": 7.0}, 2) + "\n", *lines[3:]]))
    result = call("replay", run.path)
    assert result.exit_code == 1
    assert f"different: evaluation 3 (round 2): test/loss was 7.0, is {record['test/loss']}" in result.stdout


def test_every_summary_has_the_models(folder: Path) -> None:
    write(folder, TEXT.replace("track: none", "track: none\nsweep: {seeds: 0..7}").replace("rounds: 4", "rounds: 1"))
    result = call("run", "small.yaml", "engine.plan=looped")
    [line] = [line for line in result.stdout.splitlines() if line.startswith("  models   ")]
    assert len(line.split()) == 9 and all(len(word) == 4 for word in line.split()[1:])
