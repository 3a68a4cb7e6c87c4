"""A small Flower app in a folder, workers that run it in processes of their own, and Flower's own Grid in memory to compare with."""

import ast
import os
import secrets
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch
from uuid import uuid4

from flwr.app import Context, Error, Message, RecordDict
from flwr.proto.task_pb2 import Task
from flwr.server.superlink.linkstate import LinkStateFactory
from flwr.server.superlink.linkstate.in_memory_linkstate import RunRecord
from flwr.supercore.constant import FLWR_IN_MEMORY_DB_NAME, NOOP_FEDERATION_ID
from flwr.supercore.object_store import ObjectStoreFactory
from flwr.superlink.federation import NoOpFederationManager
from flwr.superlink.grid import InMemoryGrid

from fedsim.flower import private

ROOT = Path(__file__).resolve().parents[1]
PROJECT = """\
[project]
name = "tiny"
version = "1.0.0"
[tool.flwr.app]
publisher = "lab"
[tool.flwr.app.components]
serverapp = "tiny_app.server:app"
clientapp = "tiny_app.client:app"
[tool.flwr.app.config]
rounds = 2
step.size = 1.0
"""
CLIENT = """\
import os
import time

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord, RecordDict, Message
from flwr.clientapp import ClientApp

app = ClientApp()


def marked(message, context, call_next):
    reply = call_next(message, context)
    reply.content["metrics"]["mod"] = 1
    return reply


def counted(context):
    context.state["count"] = ConfigRecord({"n": context.state["count"]["n"] + 1 if "count" in context.state else 1})
    return context.state["count"]["n"]


@app.train(mods=[marked])
def train(message, context):
    node = context.node_config["partition-id"]
    x = message.content["arrays"]["x"].numpy()
    metrics = {"num-examples": node + 1, "node": node, "of": context.node_config["num-partitions"], "count": counted(context)}
    arrays = ArrayRecord({"x": Array(x + context.run_config["step.size"] * node)})
    return Message(RecordDict({"arrays": arrays, "metrics": MetricRecord(metrics)}), reply_to=message)


@app.train("slow")
def slow(message, context):
    time.sleep(message.content["config"]["seconds"])
    return Message(RecordDict(), reply_to=message)


@app.train("fail")
def fail(message, context):
    counted(context)
    raise ZeroDivisionError("none of it")


@app.train("die")
def die(message, context):
    os._exit(3)


@app.evaluate()
def evaluate(message, context):
    total = float(message.content["arrays"]["x"].numpy().sum())
    return Message(RecordDict({"metrics": MetricRecord({"num-examples": 1, "sum": total})}), reply_to=message)


@app.query()
def query(message, context):
    about = {name: context.node_config[name] for name in sorted(context.node_config)}
    return Message(RecordDict({"about": ConfigRecord(about | {"count": counted(context), "id": context.node_id})}), reply_to=message)
"""
SERVER = """\
import json

import numpy as np
from flwr.app import Array, ArrayRecord
from flwr.serverapp import ServerApp
from flwr.serverapp.strategy import FedAvg

app = ServerApp()


@app.main()
def main(grid, context):
    strategy = FedAvg(min_train_nodes=4, min_evaluate_nodes=4, min_available_nodes=4)
    found = strategy.start(grid, ArrayRecord({"x": Array(np.zeros(3))}), num_rounds=context.run_config["rounds"])
    sums = {number: record["sum"] for number, record in found.evaluate_metrics_clientapp.items()}
    mods = {number: record["mod"] for number, record in found.train_metrics_clientapp.items()}
    print(json.dumps({"x": found.arrays["x"].numpy().tolist(), "sums": sums, "mods": mods}))
"""


def written(folder: Path) -> Path:
    """The app's folder."""
    app = folder / "app"
    (app / "tiny_app").mkdir(parents=True)
    for name, text in {
        "pyproject.toml": PROJECT,
        "tiny_app/__init__.py": "",
        "tiny_app/client.py": CLIENT,
        "tiny_app/server.py": SERVER,
    }.items():
        (app / name).write_text(text)
    return app


def fedsim(*words: Any) -> "subprocess.Popen[str]":
    """`fedsim WORDS` in a process of its own."""
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "fedsim", *map(str, words)]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def joining(address: str, nodes: str, app: Path | str, folder: Path, *words: Any) -> "subprocess.Popen[str]":
    """A worker; in plaintext where `words` have no certificate."""
    trust = words if "--certificate" in words else ("--insecure", *words)
    return fedsim("join", address, "--nodes", nodes, "--app", app, "--folder", folder, *trust)


@contextmanager
def in_memory(client_app: Any, nodes: int, config: dict[str, Any], configs: Sequence[dict[str, Any]] = ()) -> Iterator[Any]:
    """Flower's InMemoryGrid, with a thread in the place of the workers; `configs`: node configs, by default of one partition each."""
    factory = LinkStateFactory(FLWR_IN_MEMORY_DB_NAME, NoOpFederationManager(), ObjectStoreFactory())
    state: Any = factory.state()
    run = private.new_run(7, "lab/tiny", "1.0.0", config)
    run.primary_task_id, run.federation_id = 7, NOOP_FEDERATION_ID
    state.run_ids[7], state.task_store[7] = RunRecord(run=run), Task(task_id=7, run_id=7)
    places = {}
    for told in configs or [{"partition-id": node, "num-partitions": nodes} for node in range(nodes)]:
        name = state.create_node("", "", secrets.token_bytes(32), heartbeat_interval=1e6)
        state.acknowledge_node_heartbeat(node_id=name, heartbeat_interval=1e6)
        places[name] = Context(7, name, told, RecordDict(), config)
    private.identify(7, private.SERVER)
    grid, over = InMemoryGrid(factory), threading.Event()
    grid.set_run(run)

    def work() -> None:
        while not over.wait(0.01):
            for name, context in places.items():
                for message in state.get_message_ins(node_id=name, limit=1):
                    try:
                        reply = client_app(message, context)
                    except Exception as error:
                        reply = Message(Error(private.RAISED, f"{type(error)}:<'{error}'>"), reply_to=message)
                    private.number(reply, str(uuid4()))
                    state.store_message_res(reply)

    thread, parse, lock = threading.Thread(target=work), ast.literal_eval, threading.Lock()

    def alone(text: Any) -> Any:
        """Python 3.11 confuses two threads that parse at once, as `np.load` does: SystemError, "recursion depth mismatch"."""
        with lock:
            return parse(text)

    with patch.object(ast, "literal_eval", alone):
        thread.start()
        try:
            yield grid
        finally:
            over.set()
            thread.join()
