"""Flower apps in a simulated world: Flower's own strategies, an asynchronous loop, times worked out by hand, and what breaks."""

import json
import math
import os
import random
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flower_app import in_memory
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects
from launch import call, context, write

from fedsim.bench import flower as bench
from fedsim.flower import app as apps
from fedsim.flower import private
from fedsim.flower.clients import seed
from fedsim.flower.course import Mean
from fedsim.flower.settings import around
from fedsim.flower.simulate import Simulation
from fedsim.report.checks import check_events
from fedsim.run.folders import RunFolder

APPS = Path(__file__).parent / "apps"
WORLD = """\
world:
  compute: {job: {name: linear, from: 1 s, to: 4 s}}
  network: {up: 100 kB/s, down: 1 MB/s, latency: 50 ms}
track: none
"""


class Went:
    """A run of an app in `tests/apps`, or of any folder: the simulation after it, run.json and the folder."""

    def __init__(self, folder: Path, app: Path | str, world: str = WORLD, nodes: int = 4, config: Any = None, **options: Any) -> None:
        file = write(folder, world, "world.yaml")
        one = Simulation(apps.read(APPS / app), nodes, around(file, nodes), config or {}, **options)
        self.one, self.info = one, one.execute(folder / "run", "fedsim flower")
        self.state, self.run = one.course.state, RunFolder(folder / "run")
        assert [check for check in check_events(self.run.columns, self.run.info, self.run.metrics) if not check.ok] == []
        self.run.check_end()
        assert self.state is not None

    def rows(self, kind: int, *names: str) -> list[tuple[Any, ...]]:
        columns = self.run.columns
        at = columns["kind"] == kind
        return list(zip(*(columns[name][at].tolist() for name in names), strict=True))

    @property
    def log(self) -> str:
        return (self.run.path / "log.txt").read_text()


def arrays(state: RecordDict, name: str) -> Any:
    return state[name][name].numpy()


@pytest.mark.parametrize(
    ("app", "module", "key", "config"),
    [
        ("logistic", "logistic_app", "w", {"strategy": "fedavg"}),
        ("logistic", "logistic_app", "w", {"strategy": "fedadam"}),
        ("logistic", "logistic_app", "w", {"strategy": "krum"}),
        ("guarded", "guarded_app", "x", {}),
    ],
)
def test_flowers_strategies_give_what_they_give_on_flowers_own_grid(tmp_path: Path, app: str, module: str, key: str, config: Any) -> None:
    went = Went(tmp_path, app, nodes=5, config=config)  # of four, Krum's two best are each other's nearest, and the order decides
    assert went.info["status"] == "finished", went.log
    found = went.one.app
    server, client = (apps.load(reference, found.folder) for reference in (found.server, found.client))
    with in_memory(client, 5, went.one.config) as grid:
        seed(0)
        context = Context(7, private.SERVER, {}, RecordDict(), went.one.config)
        server(grid, context)
    np.testing.assert_allclose(arrays(went.state, key), arrays(context.state, key), rtol=1e-12, atol=1e-12)
    assert np.abs(arrays(went.state, key)).max() > 0.1


def test_times_and_bytes_of_a_round_are_those_worked_out_by_hand(tmp_path: Path) -> None:
    went = Went(tmp_path, "logistic", config={"rounds": 1, "evaluates": False})
    content = {"arrays": ArrayRecord({"w": Array(np.zeros(5))}), "config": ConfigRecord({"server-round": 1})}
    down = private.size(Message(RecordDict(content), 1, "train"))
    metrics = MetricRecord({"num-examples": 10, "train_loss": 0.1})
    up = private.size(Message(RecordDict({"arrays": content["arrays"], "metrics": metrics}), 1, "train"))
    sent, came = went.rows(0, "time", "node", "bytes_down"), went.rows(1, "time", "node", "bytes_up")
    assert [(at, node) for at, node, _ in sent[:4]] == [(0, 0), (0, 1), (0, 2), (0, 3)]
    assert all(abs(size - down) <= 20 for *_, size in sent[:4]) and all(abs(size - up) <= 20 for *_, size in came[:4])
    for (at, node, size), (_, _, heard) in zip(came[:4], sorted(sent[:4], key=lambda row: row[1]), strict=True):
        assert at == round(1e9 * (0.1 + heard / 1e6 + (1 + node) + size / 1e5))
    assert went.rows(2, "time", "version", "staleness") == [(came[3][0], 1, 0)] * 4
    [end] = went.run.metrics
    assert end["time/seconds"] == came[-1][0] / 1e9 and end["traffic/bytes_up"] == sum(row[2] for row in came) and end["round"] == 1
    assert {"train/loss", "clients/accuracy", "test/accuracy", "test/loss"} <= end.keys()
    assert end["test/accuracy"] == end["clients/accuracy"]


def test_a_target_is_told_by_what_the_server_evaluates(tmp_path: Path) -> None:
    went = Went(tmp_path, "logistic", WORLD + "evaluate: {target: 70 %, smooth: 1}\n", config={"rounds": 4})
    assert [record["round"] for record in went.run.metrics] == [0, 1, 2, 3, 4]
    assert all(record["test/accuracy"] != record["clients/accuracy"] for record in went.run.metrics[1:2])
    assert 0 < went.info["target_reached"]["seconds"] < went.run.metrics[-1]["time/seconds"]
    assert len(went.info["model"]) == 64 and (went.run.path / "model.safetensors").exists()


def test_size_is_that_of_the_objects_that_flower_sends() -> None:
    private.identify(1, private.SERVER)
    lot = np.random.default_rng(0)
    large = ArrayRecord({f"layer{place}.weight": Array(lot.normal(size=size)) for place, size in enumerate([3, 1000, 700_000])})
    several = {"a": large, "b": ArrayRecord({"x": Array(lot.normal(size=(2, 3)).astype(np.float32))})}
    several |= {"config": ConfigRecord({"lr": 0.1, "bytes": b"123", "names": ["a", "b"]}), "metrics": MetricRecord({"n": 3})}
    for content in ({}, {"a": large}, several):
        message = Message(RecordDict(content), 5, "train")
        assert private.size(message) == sum(len(one.deflate()) for one in get_all_nested_objects(message).values())


# Asynchronous


def loop(went: Went) -> list[tuple[Any, ...]]:
    """Of each reply: node (or error), the version then, the version that it had heard, and when, in ms."""
    assert went.info["status"] == "finished", went.log
    rows: Any = went.state["log"]["rows"]  # type: ignore[index]
    return [tuple(rows[at : at + 4]) for at in range(0, len(rows), 4)]


SPEEDS = "world: {compute: {job: [1 s, 3 s]}}\ntrack: none\n"


def test_an_asynchronous_loop_polls_by_the_virtual_clock(tmp_path: Path) -> None:
    began = time.monotonic()
    went = Went(tmp_path, "asynchronous", SPEEDS, 2, {"updates": 5, "pause": 0.25})
    # node 0 takes 1 s and node 1 takes 3 s; a poll each 0.25 s sees them at once, as these are multiples of it; older messages first
    assert loop(went) == [(0, 0, 0, 1000), (0, 1, 1, 2000), (1, 2, 0, 3000), (0, 3, 2, 3000), (0, 4, 4, 4000)]
    assert went.rows(2, "time", "node", "staleness") == [
        (1e9, 0, 0),
        (2e9, 0, 0),
        (3e9, 1, 2),
        (3e9, 0, 0),
        (4e9, 0, 0),
    ]  # one pull, one merge
    told = [(record["round"], record["test/accuracy"]) for record in went.run.metrics]
    assert told == [(1, 0.01), (2, 0.02), (3, 0.03), (3, 0.04), (4, 0.05), (4, 0.05)]
    assert time.monotonic() - began < 2.5


def test_a_loop_that_polls_without_a_pause_sees_each_reply_when_it_comes(tmp_path: Path) -> None:
    went = Went(tmp_path, "asynchronous", SPEEDS.replace("3 s", "2.7 s"), 2, {"updates": 5, "pause": 0.0})
    assert [row[3] for row in loop(went)] == [1000, 2000, 2700, 3000, 4000]


# What breaks


def test_lost_replies_are_waited_for_until_the_message_expires(tmp_path: Path) -> None:
    world = SPEEDS.replace("}}", "}, faults: {lost: [0, 1.0]}}").replace("1.0", "100 %")
    went = Went(tmp_path, "asynchronous", world, 2, {"updates": 4, "ttl": 2.5, "pause": 0.5})
    assert loop(went) == [(0, 0, 0, 1000), (0, 1, 1, 2000), (private.EXPIRED, 2, -1, 2500), (0, 2, 2, 3000), (0, 3, 3, 4000)]
    assert went.rows(3, "time", "node") == [(3e9, 1)]


def test_a_clientapp_that_crashes_is_error_8_at_once(tmp_path: Path) -> None:
    went = Went(tmp_path, "asynchronous", SPEEDS.replace("}}", "}, faults: {crash: [0, 100 %]}}"), 2, {"updates": 4, "pause": 0.0})
    codes = [row for row in loop(went) if row[0] == private.CRASHED]
    assert codes and codes[0][3] < 3000 and went.info["final"]["work/dropped"] == len(went.rows(3, "time"))


def test_nodes_that_are_away_are_not_listed_and_messages_to_them_are_error_5(tmp_path: Path) -> None:
    world = SPEEDS.replace("}}", "}, availability: {name: timetable, leaves: {1: 2.5 s}, leaving: drop}}")
    went = Went(tmp_path, "asynchronous", world, 2, {"updates": 4, "pause": 0.5})
    found = loop(went)
    assert [row for row in found if row[0] == private.NODE_GONE][:2] == [(5, 2, -1, 2500), (5, 3, -1, 3000)]
    assert [row[3] for row in found if row[0] == 0] == [1000, 2000, 3000, 4000]


def test_a_world_without_time_ends_and_stop_seconds_ends_a_loop(tmp_path: Path) -> None:
    assert [row[3] for row in loop(Went(tmp_path, "asynchronous", "track: none\n", 2, {"updates": 4, "pause": 0.0}))] == [0] * 4
    (tmp_path / "again").mkdir()
    went = Went(tmp_path / "again", "asynchronous", SPEEDS + "stop: {seconds: 3.5 s}\n", 2, {"updates": 10**6})
    assert (went.info["status"], went.info["reason"], went.info["final"]["time/seconds"]) == ("finished", "3.5 s", 3.5)
    assert went.info["final"]["work/updates"] == 4


RAISING = """\
import os

from flwr.app import Array, ArrayRecord, MetricRecord, RecordDict, Message
from flwr.clientapp import ClientApp

app = ClientApp()


@app.train()
def train(message, context):
    node = context.node_config["partition-id"]
    context.state["seen"] = MetricRecord({"n": 1})
    if node == 1:
        raise ZeroDivisionError("none of it")
    if node == 2:
        os._exit(3) if "die" in context.run_config["strategy"] else exit(3)
    x = message.content["arrays"]
    return Message(RecordDict({"arrays": x, "metrics": MetricRecord({"num-examples": 1})}), reply_to=message)
"""
STARTING = """\
import numpy as np
from flwr.app import Array, ArrayRecord
from flwr.serverapp import ServerApp
from flwr.serverapp.strategy import FedAvg

app = ServerApp()


@app.main()
def main(grid, context):
    FedAvg(fraction_evaluate=0.0).start(grid, ArrayRecord({"x": Array(np.ones(2))}), 1)
"""


def own_app(folder: Path, server: str = STARTING, client: str = RAISING, name: str = "own") -> Path:
    place = folder / "app"
    place.mkdir()
    head = f'[project]\nname = "{name}"\n[tool.flwr.app.components]\nserverapp = "own_server:app"\nclientapp = "own_client:app"\n'
    (place / "pyproject.toml").write_text(head + '[tool.flwr.app.config]\nstrategy = "fedavg"\n')
    (place / "own_server.py").write_text(server)
    (place / "own_client.py").write_text(client)
    return place


def test_a_clientapp_that_raises_is_flowers_error_and_the_run_goes_on(tmp_path: Path) -> None:
    went = Went(tmp_path, own_app(tmp_path))
    assert (went.info["status"], went.info["final"]["work/updates"], went.info["final"]["work/dropped"]) == ("finished", 2, 0)
    assert "aggregate_train: Received 2 results and 2 failures" in went.log
    assert 'raise ZeroDivisionError("none of it")' in went.log and "<class 'SystemExit'>:<'3'>" in went.log
    assert went.info["errors"] == {str(private.RAISED): 2}
    assert "seen" in went.one.grid.nodes.state[1]  # as in Flower's deployment


def test_a_serverapp_that_waits_for_nodes_that_never_come_is_told_so(tmp_path: Path) -> None:
    went = Went(tmp_path, "logistic", nodes=1)  # the strategy wants two
    assert (went.info["status"], went.info["reason"]) == (
        "failed",
        "the strategy waits for more nodes than there are: 1 of 1, and no more will come",
    )


def test_a_strategy_waits_for_nodes_by_the_virtual_clock(tmp_path: Path) -> None:
    world = "world: {compute: {job: 1 s}, availability: {name: timetable, joins: {1..3: 7.5 s}}}\ntrack: none\n"
    went = Went(tmp_path, "logistic", world, config={"rounds": 1, "evaluates": False})
    assert {at for (at,) in went.rows(0, "time")} == {8e9, 9e9} and went.log.count("Waiting for nodes to connect") == 1


def test_a_serverapp_that_raises_is_a_failed_run(tmp_path: Path) -> None:
    went = Went(tmp_path, own_app(tmp_path, STARTING + "    return 1 / 0\n"))
    assert went.info["status"] == "failed" and "the ServerApp raised ZeroDivisionError" in went.info["reason"]
    assert went.info["final"]["round"] == 1 and went.one.grid.now > 0


def test_messages_through_bytes_and_through_other_processes_give_the_same_bits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("multiprocessing.get_context", context)
    found = {}
    world = WORLD.replace("to: 4 s}}", "to: 4 s}, sample: 10 ms}")
    for name, options in {"here": {}, "bytes": {"serialize": True}, "pool": {"processes": 2}}.items():
        (tmp_path / name).mkdir()
        went = Went(tmp_path / name, "logistic", world, config={"strategy": "fedadam"}, **options)
        columns = {column: values.tolist() for column, values in went.run.columns.items()}
        found[name] = arrays(went.state, "w").tolist(), columns
        assert went.info["status"] == "finished"
    assert found["here"] == found["bytes"] == found["pool"]


@pytest.mark.slow
def test_a_clientapp_that_ends_its_process_is_error_8_for_its_own_message_alone(tmp_path: Path) -> None:
    went = Went(tmp_path, own_app(tmp_path), nodes=3, config={"strategy": "die"}, processes=1)
    assert "Received 1 results and 2 failures" in went.log and "the ClientApp ended its process" in went.log


def test_more_messages_to_a_node_than_it_can_take_wait_their_turn(tmp_path: Path) -> None:
    many = STARTING.replace(
        '    FedAvg(fraction_evaluate=0.0).start(grid, ArrayRecord({"x": Array(np.ones(2))}), 1)\n',
        """\
    import time
    from flwr.app import Message, MetricRecord, RecordDict
    node, content = sorted(grid.get_node_ids())[0], RecordDict({"arrays": ArrayRecord({"x": Array(np.ones(2))})})
    replies = grid.send_and_receive([Message(content, n, "train") for n in [node] * 3 + [99]], timeout=2.5)
    context.state["found"] = MetricRecord({"count": len(list(replies)), "now": time.monotonic()})
""",
    )
    went = Went(tmp_path, own_app(tmp_path, many, RAISING.replace("node == ", "node == 9")), "world: {compute: {job: 1 s}}\ntrack: none\n")
    assert dict(went.state["found"]) == {"count": 2, "now": 2.5}
    assert went.rows(0, "time") == [(0,), (1e9,), (2e9,)] and "1 of 4 messages were for nodes that there are not" in went.log


def test_what_a_serverapp_draws_does_not_depend_on_what_clientapps_draw(tmp_path: Path) -> None:
    drawing = STARTING.replace("import numpy as np\n", "import random\n\nimport numpy as np\nfrom flwr.app import MetricRecord\n")
    drawing += '    context.state["drawn"] = MetricRecord({"python": random.random(), "numpy": float(np.random.random())})\n'
    client = RAISING.replace("import os\n", "import os\nimport random\n\nimport numpy as np\n").replace(
        '    context.state["seen"]', '    random.seed(5)\n    np.random.seed(5)\n    context.state["seen"]'
    )
    went = Went(tmp_path, own_app(tmp_path, drawing, client), nodes=2, world="seed: 3\ntrack: none\n")
    seed(3)
    random.sample(range(2), 2)  # what the strategy draws
    assert dict(went.state["drawn"]) == {"python": random.random(), "numpy": np.random.random()}


@pytest.mark.parametrize("seconds", ["1e12", "float('inf')"])
def test_who_sleeps_beyond_the_clock_is_told_so(tmp_path: Path, seconds: str) -> None:
    body = (
        f"import time\nfrom flwr.serverapp import ServerApp\n\napp = ServerApp()\napp.main()(lambda grid, context: time.sleep({seconds}))\n"
    )
    info = Went(tmp_path, own_app(tmp_path, body)).info
    assert (info["status"], info["reason"]) == ("failed", "the ServerApp waits for what will never be: nothing happens after 0 s")


def test_the_pool_ends_when_its_parent_is_killed(tmp_path: Path) -> None:
    own = own_app(tmp_path, client=RAISING.replace("node = context", "os.kill(os.getppid(), 9)\n    node = context"))
    words = [sys.executable, "-m", "fedsim", "flower", str(own), "--nodes", "2", "--processes", "2", "-q"]
    with subprocess.Popen(words, cwd=tmp_path, stdout=subprocess.PIPE) as child:
        shown, _ = child.communicate(timeout=60)  # ends when the last of them, who all have the pipe, is gone
    assert (shown, child.returncode) == (b"", -9)


# From outside


def fails(*words: Any) -> str:
    """What is said where nothing was started."""
    shown = call("flower", *words)
    assert (shown.exit_code, shown.stdout, Path("runs").exists()) == (2, "", False), shown.output
    assert "Traceback" not in shown.stderr
    return shown.stderr


def test_bad_input_is_told_with_its_place_and_starts_nothing(folder: Path) -> None:
    good, world = APPS / "logistic", write(folder, WORLD, "world.yaml")
    assert "--nodes 0: 1 or more is due" in fails(good, "--nodes", 0)
    assert "--nodes 1000000000000: at most 10,000,000 is due" in fails(good, "--nodes", 10**12)
    assert "--processes 1000: at most 256 is due" in fails(good, "--nodes", 2, "--processes", 1000)
    assert "say with --nodes" in fails(good) and "--processes -1: 0 or more is due" in fails(good, "--nodes", 2, "--processes", -1)
    (strange := folder / "strange").mkdir()
    assert "can't be the name of a run's folder" in fails(own_app(strange, name="a\\nb"), "--nodes", 2)
    assert "there is no pyproject.toml" in fails(folder, "--nodes", 2)
    (folder / "pyproject.toml").write_text("[project]\nname = 'x'\n[tool.flwr.app]\n")
    assert "'components' is missing" in fails(folder, "--nodes", 2)
    assert "`round` is no setting of the app" in fails(good, "--nodes", 2, "--run-config", "round=3")
    assert "evaluates=False: true or false is due" in fails(good, "--nodes", 2, "--run-config", "evaluates=False")
    assert "rounds=many: a number is due" in fails(good, "--nodes", 2, "--run-config", "rounds=many")
    assert "strategy=3: a text in quotes is due" in fails(good, "--nodes", 2, "--run-config", "strategy=3")
    assert "less than 2^63 is due" in fails(good, "--nodes", 2, "--seed", 2**63)
    assert "rounds: KEY=VALUE is due" in fails(good, "--nodes", 2, "--run-config", "rounds")
    world.write_text(WORLD.replace("compute", "compote") + "wurld: 3\n")
    said = fails(good, "--nodes", 2, "--world", world)
    assert "world.yaml:2:3" in said and "did you mean `world.compute`" in said and "did you mean `world`" in said
    world.write_text("world: {compute: {job: [1 s, 2 s, 3 s]}}\n")
    assert "world.yaml:1" in (said := fails(good, "--nodes", 2, "--world", world)) and "3" in said
    world.write_text("groups: {a: 3, b: 4}\n")
    assert "world.yaml:1" in fails(good, "--nodes", 2, "--world", world)
    world.write_text("world: {attackers: {name: sign_flip, nodes: 50 %}}\n")
    assert "world.attackers" in fails(good, "--nodes", 2, "--world", world)
    world.write_text("world: {compute: {step: 1 s}}\n")
    assert "`job` or `sample` is due" in fails(good, "--nodes", 2, "--world", world)
    assert "can't be read" in fails(good, "--nodes", 2, "--world", folder / "none.yaml")


@pytest.mark.parametrize(("part", "name"), [("server", "ServerApp"), ("client", "ClientApp")])
def test_an_app_that_needs_an_absent_package_says_which(folder: Path, part: str, name: str) -> None:
    place = own_app(folder, **{part: "import torch_of_tomorrow\n"})
    said = fails(place, "--nodes", 2)
    assert f"the {name} `own_{part}:app` can't be loaded" in said and "torch_of_tomorrow" in said


def test_an_app_of_the_older_api_is_refused(folder: Path) -> None:
    server = "from flwr.server import ServerApp, ServerAppComponents\napp = ServerApp(server_fn=lambda context: ServerAppComponents())\n"
    assert "`@app.main()` is due" in fails(own_app(folder, server), "--nodes", 2)


@pytest.mark.pictures
def test_a_run_is_inspected_compared_and_drawn_like_others(folder: Path) -> None:
    write(folder, WORLD + "task: {data: digits}\nstrategy: fedavg\nevaluate: {target: 70 %, smooth: 1}\n", "world.yaml")
    words = (APPS / "logistic", "--nodes", 4, "--world", "world.yaml", "--seed", 3)
    shown = call("flower", *words, "--run-config", 'rounds=3 strategy="fedadam"')
    assert shown.exit_code == 0, shown.output
    assert "of no matter to an app: task, strategy" in shown.stdout and "finished 1 of 1" in shown.stdout
    pictures = {file.name for file in (folder / "runs/logistic/latest/figures").iterdir()}
    assert {"accuracy.png", "gantt.png"} <= pictures
    shown = call("inspect", "logistic")
    assert shown.exit_code == 0 and "(7 of 7)" in shown.stdout and "target  70 % crossed" in shown.stdout
    about = RunFolder((folder / "runs/logistic/latest").resolve())
    assert about.parameters["flower.config.strategy"] == "fedadam" and about.info["label"] == "seed 3"
    again = call("flower", *words[:4], "runs/logistic/latest/scenario.yaml", "--run-config", 'rounds=3 strategy="fedadam"', "-q")
    other = RunFolder(folder / "runs/logistic/latest")
    assert (again.exit_code, other.info["model"], other.info["hash"]) == (0, about.info["model"], about.info["hash"])
    for command in ("resume", "replay"):
        shown = call(command, "logistic")
        assert shown.exit_code == 2 and "run it anew: fedsim flower" in shown.stderr


def test_the_benchmark_measures(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench, "find_spec", lambda name: None)
    [figure] = bench.flower(1)
    assert 0 < figure.ours < 50 and figure.other == 1.0


SCRIPT = """
import json, sys
sys.path.insert(0, sys.argv[1])
import logistic_app.server
from flwr.serverapp import ServerApp
from flwr.simulation import run_simulation
from logistic_app.client import app as client
server = ServerApp()

@server.main()
def main(grid, context):
    context.run_config.update(json.loads(sys.argv[2]))
    logistic_app.server.app(grid, context)
    print(json.dumps(context.state["w"]["w"].numpy().tolist()))

run_simulation(server, client, 4, backend_config={"client_resources": {"num_cpus": 1, "num_gpus": 0.0}, "init_args": {"num_cpus": 2}})
"""


@pytest.mark.flower
def test_parameters_are_those_of_flowers_own_simulation_on_ray(tmp_path: Path) -> None:
    pytest.importorskip("ray", reason="ray is not installed (extra `ray`)")
    went = Went(tmp_path, "logistic")
    command = [sys.executable, "-W", "ignore", "-c", SCRIPT, str(APPS / "logistic"), json.dumps(went.one.config)]
    shown = subprocess.run(
        command, capture_output=True, text=True, timeout=300, check=True, env=os.environ | {"PYTHONPATH": str(APPS / "logistic")}
    )
    np.testing.assert_allclose(arrays(went.state, "w"), json.loads(shown.stdout.splitlines()[-1]), atol=1e-6)


def test_a_metric_that_is_not_finite_somewhere_has_no_mean() -> None:
    mean = Mean()
    for loss, accuracy in ((1.0, 0.5), (math.nan, 0.75), (math.inf, 1.0)):
        mean.add(RecordDict({"metrics": MetricRecord({"loss": loss, "eval_acc": accuracy, "num-examples": 2})}))
    assert mean.named("clients") == {"clients/accuracy": 0.75, "clients/loss_not_finite": 2.0}
