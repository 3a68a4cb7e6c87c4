"""Flower's ServerApps on fedsim's network: its own FedAvg, an asynchronous loop, errors by their codes, and what nodes remember."""

import json
import subprocess
import time
from collections.abc import Iterator
from math import inf
from pathlib import Path
from time import monotonic
from typing import Any

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, RecordDict
from flwr.serverapp import Grid
from outposts import until

from fedsim.base.errors import FedsimError
from fedsim.flower import app as apps
from fedsim.flower import private
from fedsim.flower.grid import HubGrid, node_id
from fedsim.flower.serve import Service
from fedsim.flower.work import Works
from fedsim.report.watching import lines
from fedsim.transport.identity import ServerIdentity, WorkerIdentity
from fedsim.transport.messages_pb2 import Job, Object, Order, Part
from fedsim.transport.watching import Server
from tests.flower_app import fedsim, in_memory, joining, written
from tests.launch import call, refused

NOTHING = RecordDict()
ids = [node_id(node) for node in range(4)]


class Field:
    """A Grid with its workers: two of two nodes each, unless a test wants others."""

    def __init__(self, grid: HubGrid, address: str, app: Path, folder: Path) -> None:
        self.grid, self.address, self.app, self.folder = grid, address, app, folder
        self.workers: dict[str, subprocess.Popen[str]] = {}

    def join(self, nodes: str, *words: Any) -> None:
        count = len(self.grid.host)
        self.workers[nodes] = joining(self.address, nodes, self.app, self.folder / f"worker {nodes}", *words)
        self.grid.wait_for_nodes(count + 2)


@pytest.fixture(scope="module")
def field(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Field]:
    folder = tmp_path_factory.mktemp("field")
    app = written(folder)
    service = Service(apps.read(app), 6, 4, {}, ServerIdentity.plain(), lambda text: None, silence=4)
    with service.network(["127.0.0.1:0"]) as (grid, [address]):
        field = Field(grid, address, app, folder)
        field.workers |= {nodes: joining(address, nodes, app, folder / f"worker {nodes}") for nodes in ("0..1", "2..3")}
        grid.wait_for_nodes(4)
        yield field
    for worker in field.workers.values():
        out, err = worker.communicate(timeout=60)
        assert (worker.returncode, out.splitlines()[-1]) == (0, "the run is over: finished"), err


def model(*numbers: float) -> RecordDict:
    return RecordDict({"arrays": ArrayRecord({"x": Array(np.array(numbers))})})


def asked(grid: Grid, node: int, kind: str = "query", **config: Any) -> Message:
    """A node's reply."""
    content = RecordDict({"config": ConfigRecord(config)})
    [reply] = grid.send_and_receive([Message(content, node, kind)], timeout=60)
    assert reply.metadata.src_node_id in (node, private.SERVER)
    return reply


def count(reply: Message) -> Any:
    return reply.content["about"]["count"]


def loop(grid: Grid) -> dict[str, Any]:
    """Two messages to each node, the second as soon as the first is back; what every Grid must give alike."""
    flight: dict[str, tuple[int, int]] = {}
    nodes = sorted(grid.get_node_ids())
    found: list[tuple[int, int, float]] = []

    def send(node: int, version: int, kind: str = "train") -> str:
        [name] = grid.push_messages([Message(model(version, 10.0), node, kind, ttl=60.0, group_id=str(version))])
        flight[name] = node, version
        return name

    for node in nodes:
        send(node, 0)
    while flight:
        for reply in grid.pull_messages([*flight]):
            node, version = flight.pop(reply.metadata.reply_to_message_id)
            assert (
                reply.metadata.src_node_id == node and reply.metadata.group_id == str(version) and reply.metadata.run_id == grid.run.run_id
            )
            metrics = reply.content["metrics"]
            x = reply.content["arrays"]["x"].numpy() - metrics["node"]
            found.append((metrics["node"], version, *x.tolist()))
            if version == 0:
                send(node, 1)
        time.sleep(0.005)
    name = send(nodes[0], 0)
    [reply] = grid.send_and_receive([Message(model(1.0), nodes[1], "train.fail")], timeout=60)
    while not (replies := [*grid.pull_messages([name])]):
        time.sleep(0.005)
    again = [reply.error.code for reply in grid.pull_messages([name])]
    strange = [name for name in grid.push_messages([Message(NOTHING, 12345, "query")]) if name is not None]
    return {
        "found": sorted(found),
        "failed": (reply.error.code, reply.error.reason),
        "pulled": len(replies),
        "again": again,
        "strange": strange,
        "types": [reply.metadata.message_type for reply in replies],
    }


def test_flowers_fedavg_on_two_workers_is_the_average_worked_out_by_hand(tmp_path: Path) -> None:
    app, certs = written(tmp_path), tmp_path / "certs"
    assert call("certs", "--server", "127.0.0.1", "--workers", "a=0..1,b=2..3", "-o", certs).exit_code == 0
    server = fedsim("serve", app, "rounds=3", "step.size=0.5", "--nodes", 4, "--certificates", certs, "--listen", "127.0.0.1:0")
    said = server.stdout.readline()
    assert "(TLS) for 4 of 4 nodes" in said
    address = said.split(" at ")[1].split()[0]
    workers = [
        joining(address, nodes, app, tmp_path / nodes, "--certificate", certs / f"{name}.pem")
        for name, nodes in (("a", "0..1"), ("b", "auto"))
    ]
    out, err = server.communicate(timeout=120)
    assert server.returncode == 0, err
    mean = 0.5 * (0 * 1 + 1 * 2 + 2 * 3 + 3 * 4) / (1 + 2 + 3 + 4)
    found = json.loads(out.splitlines()[-1])
    assert found["x"] == pytest.approx([3 * mean] * 3, rel=1e-15)
    assert found["sums"] == pytest.approx({"1": 3 * mean, "2": 6 * mean, "3": 9 * mean}, rel=1e-15)
    assert found["mods"] == pytest.approx({"1": 1, "2": 1, "3": 1})
    for worker in workers:
        out, err = worker.communicate(timeout=60)
        assert (worker.returncode, out.splitlines()[-1], err) == (0, "the run is over: finished", "")


def test_an_asynchronous_loop_gives_what_it_gives_on_flowers_own_grid(field: Field) -> None:
    ours = loop(field.grid)
    assert ours["found"] == [(node, version, version, 10.0) for node in range(4) for version in range(2)]
    assert ours["failed"] == (private.RAISED, "<class 'ZeroDivisionError'>:<'none of it'>")
    assert (ours["pulled"], ours["again"], ours["strange"], ours["types"]) == (1, [private.EXPIRED], [], ["train"])
    client = apps.load("tiny_app.client:app", field.app)
    with in_memory(client, 4, {"rounds": 2, "step.size": 1.0}) as grid:
        theirs = loop(grid)
    private.identify(field.grid.run.run_id, private.SERVER)
    assert ours == theirs


def test_the_run_of_an_app_is_watched_at_its_server(field: Field) -> None:
    with Server(field.address, WorkerIdentity(insecure=True)) as server:
        state = server.state()
    assert state["status"] == "waiting" and sorted(one["nodes"] for one in state["workers"]) == ["0..1", "2..3"]
    shown = "\n".join(lines(state))
    assert shown.startswith(state["name"]) and "nodes 4..5: no worker has joined with them yet" in shown


def test_a_pull_may_wait_and_nothing_polls(field: Field) -> None:
    grid, began = field.grid, monotonic()
    [name] = grid.push_messages([Message(RecordDict({"config": ConfigRecord({"seconds": 0.4})}), ids[0], "train.slow")])
    assert [*grid.pull_messages([name])] == [] == [*grid.pull_messages([name], wait=0.05)]
    [reply] = grid.pull_messages([name], wait=inf)
    assert reply.has_content() and 0.4 <= monotonic() - began < 2


def test_a_message_lives_as_long_as_it_says(field: Field) -> None:
    grid, began = field.grid, monotonic()
    slow = RecordDict({"config": ConfigRecord({"seconds": 1.0})})
    [name, next_] = grid.push_messages([Message(slow, ids[0], "train.slow", ttl=0.3), Message(NOTHING, ids[0], "query")])
    [reply] = grid.pull_messages([name], wait=inf)
    assert reply.error.code == private.EXPIRED and reply.metadata.reply_to_message_id == name and 0.3 <= monotonic() - began < 1.0
    [reply] = grid.pull_messages([next_], wait=inf)
    assert reply.has_content()
    old = Message(NOTHING, ids[0], "query", ttl=0.001)
    time.sleep(0.01)
    assert list(grid.push_messages([Message(NOTHING, 12345, "query"), old])) == [None, None]
    old.metadata.ttl = -1
    with pytest.raises(ValueError, match="time to live of -1 s"):
        grid.push_messages([old])


def test_a_content_goes_to_a_worker_once_and_nothing_is_left_of_it(field: Field) -> None:
    grid = field.grid
    carried = [*grid.hub.carried.values()]
    before = [one.objects_down for one in carried]
    content = RecordDict({"arrays": ArrayRecord({"x": Array(np.arange(100_000.0))})})
    replies = [*grid.send_and_receive(Message(content, node, "train") for node in [*ids, *ids])]
    assert [reply.metadata.src_node_id for reply in replies] == [*ids, *ids]
    size = len(private.packed(content))
    assert [one.objects_down - old for one, old in zip(carried, before, strict=True)] == [size, size]
    until(lambda: not [*grid.shelf.store.folder.iterdir()])
    assert not grid.shelf.uses and not grid.sent


def test_a_context_is_a_nodes_own_and_outlives_its_worker(field: Field) -> None:
    grid = field.grid
    about = [asked(grid, node).content["about"] for node in ids[2:]]
    assert [(one["partition-id"], one["num-partitions"], one["id"]) for one in about] == [(2, 6, ids[2]), (3, 6, ids[3])]
    before = count(asked(grid, ids[2]))
    assert asked(grid, ids[2], "train.fail").error.code == private.RAISED
    assert count(asked(grid, ids[2])) == before + 2  # what a ClientApp changed before it raised stays, as in Flower's deployment

    [hanging] = grid.push_messages([Message(RecordDict({"config": ConfigRecord({"seconds": 30.0})}), ids[3], "train.slow")])
    other = asked(grid, ids[0])
    field.workers["2..3"].kill()
    began = monotonic()
    field.workers["2..3"].communicate()  # its pipes close when the process that is at work ends, too
    [reply] = grid.pull_messages([hanging], wait=10)
    assert reply.error.code == private.NODE_GONE and "nothing was heard of it for 4 s" in reply.error.reason
    assert 3 < monotonic() - began < 12 and list(grid.get_node_ids()) == ids[:2]
    assert count(asked(grid, ids[0])) == count(other) + 1
    assert asked(grid, ids[2]).error.code == private.NODE_GONE  # at once: it was there before

    field.join("2..3", "--node-config", "site='ward 3'")
    about = asked(grid, ids[2]).content["about"]
    assert about["count"] == before + 3 and about["site"] == "ward 3"


def test_a_client_app_that_ends_its_process_is_error_8_and_the_worker_goes_on(field: Field) -> None:
    grid = field.grid
    before, other = count(asked(grid, ids[0])), count(asked(grid, ids[1]))
    names = grid.push_messages(
        [Message(NOTHING, node, kind) for node, kind in ((ids[0], "train.die"), (ids[1], "query"), (ids[0], "query"))]
    )
    codes = {
        name: (reply.has_error() and reply.error.code) or count(reply) for name in names for reply in grid.pull_messages([name], wait=20)
    }
    assert [*codes.values()] == [private.CRASHED, other + 1, before + 1]


def test_who_has_another_app_is_refused(field: Field, tmp_path: Path) -> None:
    other = written(tmp_path)
    client = other / "tiny_app/client.py"
    client.write_text(client.read_text() + "\n# changed\n")
    plain = ("--insecure", "--folder")
    results = [
        call("join", field.address, "--nodes", "4", "--app", other, *plain, tmp_path / "w1"),
        call("join", field.address, "--nodes", "5", "--app", "tiny_app.client:app", "--code", other, *plain, tmp_path / "w2"),
        call("join", field.address, "--nodes", "9", "--app", field.app, *plain, tmp_path / "w3"),
        call("join", field.address, *plain, tmp_path / "w4"),
    ]
    assert [result.exit_code for result in results] == [2] * 4
    said = [result.stderr for result in results]
    assert "the app differs: `tiny_app/client.py` differs; put the server's copy" in said[0]
    assert "`tiny_app/client.py` differs" in said[1]
    assert "there is no node 9" in said[2]
    assert "--app APPDIR" in said[3]


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (["."], "there is no pyproject.toml"),
        (["app"], "say with --nodes how many nodes there are"),
        (["app", "--nodes", 2, "speed=3"], "`speed` is no setting of the app; [tool.flwr.app.config] has rounds, step.size"),
        (["app", "--nodes", 2, "--start-with", 3], "1 to 2 are due"),
    ],
)
def test_what_cannot_be_served_is_said(words: list[Any], why: str, folder: Path) -> None:
    written(folder)
    assert why in refused("serve", *words, "--insecure")
    assert "no Flower app" in refused("join", "127.0.0.1:1", "--app", "tiny_app", "--insecure")


# A worker's side, without a network


class Node:
    """Works of one worker, and a server that pushes and settles."""

    def __init__(self, folder: Path, text: str) -> None:
        (folder / "alone.py").write_text(text)
        self.folder, self.job = folder, 0
        self.start()

    def start(self) -> None:
        """Its process is a new one."""
        config = {"id": 5, "nodes": 1, "config": {}}
        self.works = Works(self.folder / "run", apps.only_client("alone:app", self.folder), config, {})

    def push(self, kind: str = "query", node: int = 0) -> int:
        self.job += 1
        private.identify(5, private.SERVER)
        message = Message(NOTHING, node_id(node), kind)
        private.number(message, str(self.job))
        content = self.folder / "content"
        content.write_bytes(private.packed(NOTHING))
        part = Part(name="content", object=Object(hash=b"c" * 32))
        order = Order(kind="flower", jobs=[Job(id=self.job, node=node)], parts=[part], head=private.head(message))
        self.works.take(order, {b"c" * 32: content})
        self.works.take(order, {b"c" * 32: content})
        return self.job

    def work(self) -> Message:
        _, file = self.works.work()
        to = Message(NOTHING, node_id(0), "query")
        return private.answered(file.read_bytes(), to, "reply")

    def ask(self) -> Any:
        job, reply = self.push(), self.work()
        self.works.settle([job], [])
        return count(reply)


COUNTING = """
from flwr.app import ConfigRecord, Message, RecordDict
from flwr.clientapp import ClientApp

app = ClientApp()

@app.query()
def query(message, context):
    n = context.state["count"]["n"] + 1 if "count" in context.state else 1
    context.state["count"] = ConfigRecord({"n": n})
    return Message(RecordDict({"about": ConfigRecord({"count": n})}), reply_to=message)
"""


def test_a_state_holds_when_its_reply_is_kept_and_only_then(tmp_path: Path) -> None:
    node = Node(tmp_path, COUNTING)
    assert [node.ask(), node.ask()] == [1, 2]
    job = node.push()
    assert count(node.work()) == 3
    later = node.push()
    assert not node.works.waiting and [reply.jobs for reply, _ in node.works.pending()] == [[job]]
    node.works.settle([], [job])
    assert count(node.work()) == 3  # the last one never was
    node.start()
    assert [reply.jobs for reply, _ in node.works.pending()] == [[later]]
    node.works.settle([later], [])
    assert node.ask() == 4 and not [*(tmp_path / "run/outbox").iterdir()]
    node.push(node=0)
    node.push(node=1)
    node.push(node=1)
    assert [one.job.node for one in node.works.waiting] == [0, 1]
    node.works.cancel([node.job, node.job - 1])
    assert [one.job.node for one in node.works.queue] == [0]


def test_an_app_that_cannot_be_loaded_is_error_1(tmp_path: Path) -> None:
    node = Node(tmp_path, "import nothing_of_this_name\n")
    node.push()
    reply = node.work()
    assert reply.error.code == private.LOAD and "nothing_of_this_name" in reply.error.reason
    with pytest.raises(FedsimError, match="--app missing:app: there is no"):
        apps.given("missing:app", tmp_path)


def test_apps_are_compared_by_the_first_file_that_differs(tmp_path: Path) -> None:
    mine = apps.hashes(written(tmp_path))
    assert [*sorted(mine)] == ["pyproject.toml", "tiny_app/__init__.py", "tiny_app/client.py", "tiny_app/server.py"]
    assert apps.differs(mine, mine, True) == ""
    assert apps.differs(mine, {**mine, "a.py": "0"}, True) == "`a.py` is not here"
    fewer = {name: mine[name] for name in mine if name != "pyproject.toml"}
    assert (apps.differs(mine, fewer, True), apps.differs(mine, fewer, False)) == ("`pyproject.toml` is missing there", "")


def test_settings_are_as_in_toml() -> None:
    assert apps.settings(["a=1", "b=0.5", "c=true", "d=word", "e.f='1'"]) == {"a": 1, "b": 0.5, "c": True, "d": "word", "e.f": "1"}
    with pytest.raises(FedsimError, match="truth value, number or text"):
        apps.settings(["a=[1]"])


def test_ids_of_nodes_are_the_same_in_each_run() -> None:
    assert ids[:2] == [9188334909231501979, 4206808248211112018]
    assert len({node_id(node) for node in range(1000)}) == 1000
