"""fedsim as a Flower app: over Flower's Grid in memory, and in its own servers' processes on loopback."""

import functools
import importlib.util
import json
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import deployed
import numpy as np
import pytest
import superlink
from flower_app import in_memory
from flwr.app import Context, Message, RecordDict
from flwr.superlink.grid import InMemoryGrid

from fedsim.base.errors import FedsimError, RunError
from fedsim.federation.ledger import KINDS
from fedsim.flower import client_app, network, server_app
from fedsim.run.folders import RunFolder

SCENARIO = """\
name: small
task: {data: digits, partition: {name: dirichlet, alpha: 0.5, nodes: 2}, model: logistic}
strategy: fedavg
train: {steps: 2, batch: 8, lr: 0.1}
stop: {rounds: 2}
checkpoint: none
track: none
"""
EF21 = SCENARIO.replace("stop:", "uplink: {name: ef21, inner: {name: topk, fraction: 10 %}}\nstop:")
PARTS = [{"partition-id": node, "num-partitions": 2} for node in range(2)]


@pytest.fixture
def app(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The app's folder, as Flower unpacks it, on the import path."""
    place = folder / "app"
    place.mkdir()
    for name in ("pyproject.toml", "scenario.yaml"):
        (place / name).write_bytes((superlink.APP / name).read_bytes())
    (place / "scenario.yaml").write_text(SCENARIO)
    monkeypatch.syspath_prepend(str(place))
    monkeypatch.setenv("FLWR_HOME", str(folder / "flower"))
    monkeypatch.setattr(network, "LOOK", 0.1)
    monkeypatch.setattr(network, "NAP", 0.02)
    monkeypatch.setattr(network, "AGAIN", 0.5)
    return place


def served(folder: Path, configs: Sequence[dict[str, Any]] = PARTS, client: Any = None, **config: str) -> RunFolder:
    """A run over a Grid in memory."""
    told: dict[str, Any] = {"scenario": "scenario.yaml", "settings": "", "runs": "runs"} | config
    with in_memory(client or client_app.made(), len(configs), told, configs) as grid:
        server_app.made()(grid, Context(7, 1, {}, RecordDict(), told))
    [run] = sorted(folder.glob("runs/*/2*"))[-1:]
    return RunFolder(run)


def test_rounds_are_those_of_a_simulation_and_of_the_replay(app: Path, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (app / "scenario.yaml").write_text(SCENARIO.replace("nodes: 2", "nodes: 4"))
    run = served(folder, [{"nodes": "0..1"}, {"nodes": "2,3"}])
    assert run.info["model"] == deployed.simulated(app / "scenario.yaml", folder / "simulated")["model"]
    deployed.replayed(run.path)
    said = capsys.readouterr().out
    assert "at Flower's SuperLink (Flower); 4 nodes, begins with 4" in said and "nodes 0..1 joined: " in said
    workers = run.info["deployed"]["workers"]
    assert sorted((one["nodes"], one["jobs"]) for one in workers) == [("0..1", 4), ("2..3", 4)]
    assert not (run.path / "objects").exists() and not [*folder.glob("flower/fedsim/*/*/objects")]


@pytest.mark.parametrize("method", ["ef21", "buffered"])
def test_what_nodes_remember_lies_in_files(method: str, app: Path, folder: Path) -> None:
    text = EF21 if method == "ef21" else SCENARIO + "schedule: {name: buffered, size: 1, concurrency: 2}\n"
    (app / "scenario.yaml").write_text(text.replace("rounds: 2", "rounds: 3"))
    run = served(folder)
    assert run.info["final"]["round"] == 3
    deployed.replayed(run.path)
    if method == "ef21":
        assert run.info["model"] == deployed.simulated(app / "scenario.yaml", folder / "simulated")["model"]
        assert len([*folder.glob(f"flower/fedsim/{run.path.name}/*/memory/*.checkpoint")]) >= 2


def test_a_reply_that_is_lost_costs_its_job_and_nothing_else(app: Path, folder: Path) -> None:
    """What a node has on its disk of a job that the server gave up is forgotten with the next order."""
    lost, client = list[int](), client_app.made()

    def dies(message: Message, context: Context) -> Message:
        reply = client(message, context)
        if message.metadata.message_type == "train" and context.node_config["partition-id"] == 1 and not lost:
            assert [*folder.glob("flower/fedsim/*/1/outbox/1")]
            lost.append(1)
            raise SystemError("gone")
        return reply

    (app / "scenario.yaml").write_text(EF21)
    run = served(folder, client=dies)
    deployed.replayed(run.path)
    assert lost and run.columns["job"][run.columns["kind"] == KINDS.index("drop")].tolist() == [1]
    assert [file.name for file in folder.glob("flower/fedsim/*/1/outbox/?")] == ["3"]


def test_a_run_that_broke_off_goes_on_to_the_same_model(app: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The Grid fails while replies are out; another run of the same scenario takes them from the nodes' disks."""
    (app / "scenario.yaml").write_text(EF21)
    pulled, client, pull = list[int](), client_app.made(), InMemoryGrid.pull_messages

    def breaks(grid: Any, ids: Any) -> Any:
        pulled.append(1)
        if len([*folder.glob("flower/fedsim/*/?/outbox/[23]")]) == 2:
            raise ConnectionError("the SuperLink is gone")
        return pull(grid, ids)

    with monkeypatch.context() as patch:
        patch.setattr(InMemoryGrid, "pull_messages", breaks)
        with pytest.raises(RunError, match="Flower's Grid: ConnectionError: the SuperLink is gone"):
            served(folder, client=client)
    done = [*folder.glob("flower/fedsim/*/?/outbox/?")]
    made = {file: file.stat().st_mtime_ns for file in done}
    run = served(folder)
    assert len([*folder.glob("runs/*/2*")]) == 1 and run.info["status"] == "finished"
    assert {file: file.stat().st_mtime_ns for file in done} == made  # computed once
    deployed.replayed(run.path)
    assert run.info["model"] == deployed.simulated(app / "scenario.yaml", folder / "simulated")["model"]


def test_who_does_not_fit_is_refused_by_name_and_asked_again(app: Path, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:

    odd = [PARTS[0], {"partition-id": 9}, {}, {"nodes": "4..2"}, {"partition-id": 1, "data": str(folder / "nowhere")}]
    run = served(folder, [*PARTS, *odd])
    said = capsys.readouterr().out
    assert run.info["status"] == "finished"
    for words in (
        "can't take part: node 0 is hosted by Flower node ",
        "can't take part: there is no node 9; this run has nodes 0..1",
        "can't take part: node config: `partition-id=3` or `nodes='0..4'` is due",
        "can't take part: node config `nodes`: `4..2` runs backwards; `2..4` is due",
        "can't take part: node config `data`: there is no folder ",
    ):
        assert said.count(words) == 1, said


def test_nodes_with_their_own_data_and_who_lacks_them(app: Path, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rng, asked, client = np.random.default_rng(0), list[Any](), client_app.made()
    for place in ("a", "b"):
        (folder / place).mkdir()
        np.savez(folder / place / "wards.npz", x=rng.normal(size=(40, 3)).astype("float32"), y=np.arange(40) % 2)
    (folder / "a/wards.npz").rename(folder / "later.npz")
    own = SCENARIO.replace("data: digits", "data: {name: npz, file: wards.npz, test: b/wards.npz}")
    (folder / "own.yaml").write_text(own.replace("{name: dirichlet, alpha: 0.5, nodes: 2}", "{name: own, nodes: 2}"))

    def mended(message: Message, context: Context) -> Message:
        asked.append(context.node_config["partition-id"])
        if asked.count(0) == 2 and (folder / "later.npz").exists():
            (folder / "later.npz").rename(folder / "a/wards.npz")
        return client(message, context)

    homes = [{"partition-id": node, "data": str(folder / place)} for node, place in enumerate("ab")]
    run = served(folder, homes, mended, scenario=str(folder / "own.yaml"))
    deployed.replayed(run.path, [([node], folder / place) for node, place in enumerate("ab")])
    said = capsys.readouterr().out
    assert "waiting until all 2 nodes have told how many samples they have" in said
    assert said.count("can't take part: ") == 1 and "wards.npz" in said.partition("can't take part: ")[2].partition("\n")[0]


@functools.cache
def bad() -> dict[str, tuple[dict[str, str], str]]:
    return {
        "missing": ({"scenario": "nosuch.yaml"}, "run config `scenario`: there is no file `nosuch.yaml`; the app has scenario.yaml"),
        "json": ({"scenario": "{'task': 1}"}, "run config `scenario`: no JSON: "),
        "key": ({"scenario": '{"task": {"data": "digits"}, "strategi": "fedavg"}'}, "run config `scenario`:1:30: unknown key `strategi`"),
        "quote": ({"settings": "name='a"}, "run config `settings`: No closing quotation; KEY=VALUE"),
        "file": ({"settings": "strategy=fedavgg"}, "fedavg"),
        "peers": ({"settings": "strategy=dsgd"}, "schedule: `gossip` has nodes that talk to each other, which Flower's can't"),
        "replicas": ({"scenario": '{"task": {"data": "digits"}, "strategy": "one_byte"}'}, "`one_byte` has nodes that talk to each other"),
        "sweep": (
            {"scenario": json.dumps({"task": {"data": "digits"}, "strategy": "fedavg", "sweep": {"seeds": [0, 1]}})},
            "2 runs; one is due",
        ),
    }


@pytest.mark.parametrize("which", bad())
def test_a_bad_run_config_is_one_clear_error(which: str, app: Path, folder: Path) -> None:
    config, words = bad()[which]
    with pytest.raises(FedsimError) as error:
        served(folder, [], **config)
    assert words in str(error.value) and "run-config-7" not in str(error.value)
    assert not (folder / "runs").exists() and not [*app.glob("run-config*")]


def test_a_scenario_as_json_runs_and_a_run_that_fails_raises(app: Path, folder: Path) -> None:
    text = json.dumps({"task": {"data": "digits", "model": "logistic", "partition": {"name": "iid", "nodes": 1}}, "strategy": "fedavg"})
    run = served(folder, [{"partition-id": 0}], scenario=text, settings="stop.rounds=1 track=none checkpoint=none")
    assert run.info["name"] == "flower" and run.info["status"] == "finished"

    def breaks(message: Message, context: Context) -> Message:
        if message.metadata.message_type == "train":
            raise ZeroDivisionError("none of it")
        return client_app.made()(message, context)

    with pytest.raises(RunError, match="the run failed: "):
        served(folder, client=breaks, settings="stop.rounds=1")


def test_the_app_is_made_when_it_is_asked_for() -> None:
    code = "import sys, fedsim.flower; assert not {'torch', 'flwr', 'numpy'} & {*sys.modules}"
    subprocess.run([sys.executable, "-c", code], check=True, env=superlink.environment(Path()))
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        getattr(importlib.import_module("fedsim.flower"), "nothing")  # noqa: B009


def replayed(folder: Path) -> RunFolder:
    """The last run of a federation, computed again."""
    [run] = [RunFolder(place) for place in folder.glob("runs/*/2*/run.json")][-1:]
    deployed.replayed(run.path.parent)
    return RunFolder(run.path.parent)


@pytest.mark.flower
def test_a_superlink_and_a_supernode(tmp_path: Path) -> None:
    """The smallest run in processes, with TLS and node authentication; `make test-flower` runs more."""
    with superlink.federation(tmp_path, ["nodes='0..1'"]) as flower:
        number = flower.run(settings="stop.rounds=1 track=none checkpoint=none")
        assert flower.verdict(number)[0] == "finished:completed", flower.said(number)
    assert replayed(tmp_path).info["final"]["round"] == 1


@pytest.fixture(scope="module")
def flower(tmp_path_factory: pytest.TempPathFactory) -> Iterator[superlink.Federation]:
    """A SuperLink with two SuperNodes."""
    with superlink.federation(tmp_path_factory.mktemp("flower")) as found:
        yield found


RUNS = {
    "rounds": "stop.rounds=2 strategy=fedavg uplink='{name: ef21, inner: {name: topk, fraction: 10 %}}'",
    "scaffold": "stop.rounds=2 strategy=scaffold",
    "buffered": "stop.updates=3 strategy=fedbuff schedule='{name: buffered, size: 1, concurrency: 2}'",
    "fedfix": "stop.updates=3 strategy='{name: fedfix, frequencies: estimated}' schedule='{name: ticks, every: 10 s}'",
}


@pytest.mark.flower
@pytest.mark.parametrize("method", RUNS)
def test_two_supernodes(method: str, flower: superlink.Federation) -> None:
    number = flower.run(settings=f"name={method} stop.rounds=null track=none {RUNS[method]}")
    assert flower.verdict(number)[0] == "finished:completed", flower.said(number)
    run = RunFolder(flower.folder / "runs" / method / "latest")
    deployed.replayed(run.path)
    if method in ("rounds", "scaffold"):
        assert run.info["model"] == deployed.simulated(run.path / "scenario.yaml", flower.folder / f"{method}-simulated")["model"]


@pytest.mark.flower
@pytest.mark.parametrize("which", ["missing", "key", "peers"])
def test_a_bad_run_config_fails_in_the_list_of_runs(which: str, flower: superlink.Federation) -> None:
    config, words = bad()[which]
    number = flower.run(**config)
    verdict, details = flower.verdict(number)
    assert verdict == "finished:failed" and words.replace("the app has scenario.yaml", "the app has") in details


@pytest.mark.flower
def test_two_supernodes_of_one_partition_and_one_that_is_killed(tmp_path: Path) -> None:
    """A word for who is refused, and for what is waited for; a SuperNode that is killed is lost, and the run goes on without it."""
    with superlink.federation(tmp_path, ["partition-id=0", "partition-id=0"]) as flower:
        number = flower.run(settings=f"track=none {RUNS['scaffold']} stop.rounds=3")
        superlink.until(lambda: "is hosted by Flower node" in flower.said(number), lambda: flower.said(number), 3.0)
        flower.node("n2", "partition-id=1")
        superlink.until(lambda: [*tmp_path.glob("n2/fedsim/*/1/memory/*")], lambda: flower.said(number))
        flower.kill("n2")
        assert flower.verdict(number)[0] == "finished:completed", flower.said(number)
        said = flower.said(number)
        assert "2 nodes, begins with 2" in said and "node 1 lost: Flower says that it is " in said
    replayed(tmp_path)


@pytest.mark.flower
@pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="ray is not installed: Flower's local simulation needs it")
def test_flowers_local_simulation(tmp_path: Path) -> None:
    size = "num-supernodes=2 client-resources-num-cpus=1 client-resources-num-gpus=0.0 init-args-num-cpus=2"
    with superlink.simulation(tmp_path) as flower:
        number = flower.run(options=["--federation-config", size], settings=f"track=none {RUNS['rounds']}")
        assert flower.verdict(number)[0] == "finished:completed", flower.said(number)
    run = replayed(tmp_path)
    assert run.info["model"] == deployed.simulated(run.path / "scenario.yaml", tmp_path / "simulated")["model"]
