"""Flower apps in a simulated world: what a message costs beside the ClientApp alone, and beside Flower's own simulation on Ray."""

import logging
from collections.abc import Iterable
from importlib.util import find_spec
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

from flwr.app import Context, Message, RecordDict
from flwr.clientapp import ClientApp

from fedsim.bench.figures import Figure, limit, say
from fedsim.flower import private
from fedsim.flower.app import load, read
from fedsim.flower.grid import OwnGrid
from fedsim.flower.settings import around
from fedsim.flower.simulate import Simulation

NODES, ROUNDS = 100, 20
MOST = 1.0  # ms a message
RATIO = 5.0
PROJECT = """\
[project]
name = "bench"
version = "1.0.0"
[tool.flwr.app.components]
serverapp = "fedsim_bench_app:server"
clientapp = "fedsim_bench_app:client"
[tool.flwr.app.config]
"""
CODE = f"""\
import timeit

import numpy as np
from flwr.app import Array, ArrayRecord, MetricRecord, RecordDict, Message
from flwr.clientapp import ClientApp
from flwr.serverapp import ServerApp
from flwr.serverapp.strategy import FedAvg

client, server = ClientApp(), ServerApp()
found = []


@client.train()
def train(message, context):
    lot = np.random.default_rng(context.node_config["partition-id"])
    x = lot.normal(size=(64, 50))
    y, w = x[:, 0] > 0, message.content["arrays"]["w"].numpy()
    for _ in range(5):
        w = w - 0.5 * x.T @ (1 / (1 + np.exp(-x @ w)) - y) / 64
    content = {{"arrays": ArrayRecord({{"w": Array(w)}}), "metrics": MetricRecord({{"num-examples": 64}})}}
    return Message(RecordDict(content), reply_to=message)


@server.main()
def main(grid, context):
    strategy = FedAvg(fraction_train=0.1, fraction_evaluate=0.0, min_train_nodes=10, min_available_nodes={NODES})
    start = ArrayRecord({{"w": Array(np.zeros(50))}})
    for rounds in (3, {ROUNDS}):  # the first is not measured: processes start
        began = timeit.default_timer()
        strategy.start(grid, start, rounds)
        spent = timeit.default_timer() - began
    found.append(1000 * spent / (10 * {ROUNDS}))
"""


class Direct(OwnGrid):
    """Calls the ClientApp for each message, and no more."""

    def __init__(self, client: ClientApp) -> None:
        self.client, self._run = client, private.new_run(1, "bench", "1.0.0", {})
        self.contexts = {node: Context(1, node, {"partition-id": node}, RecordDict(), {}) for node in range(1, NODES + 1)}

    def get_node_ids(self) -> Iterable[int]:
        return [*self.contexts]

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        raise NotImplementedError

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        raise NotImplementedError

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterable[Message]:
        return [self.client(message, self.contexts[message.metadata.dst_node_id]) for message in messages]


def flower(trials: int) -> list[Figure]:
    """Logistic regression under Flower's FedAvg, 100 nodes, a cohort of 10: ms a message more than where the strategy calls the ClientApp
    directly, in a simulated world and on Ray. Start-up is left out."""
    with TemporaryDirectory() as place:
        folder = Path(place)
        (folder / "pyproject.toml").write_text(PROJECT)
        (folder / "fedsim_bench_app.py").write_text(CODE)
        (folder / "world.yaml").write_text("world: {compute: {job: 1 s}, network: {up: 1 MB/s, down: 1 MB/s}}\ntrack: none\n")
        app = read(folder)
        server, client, found = (load(f"fedsim_bench_app:{name}", folder) for name in ("server", "client", "found"))
        logging.getLogger("flwr").setLevel(logging.ERROR)
        for trial in range(trials + 1):
            say(f"simulated world: trial {trial} of {trials}")
            Simulation(app, NODES, around(folder / "world.yaml", NODES), {}).execute(folder / f"run {trial}")
            server(Direct(client), Context(1, private.SERVER, {}, RecordDict(), {}))
        pairs = list(zip(found[2::2], found[3::2], strict=True))
        direct = median(other for _, other in pairs)
        more = median(one - other for one, other in pairs)
        figures = [limit("a message to a Flower app in a simulated world, ms more than its work", more, MOST)]
        if find_spec("ray") is None:
            print("Flower's own simulation is not measured: ray is not installed (extra `ray`)", flush=True)
            return figures
        say("Flower's simulation on Ray")
        _on_ray(server, client)
        theirs = found[-1] - direct
        return [
            *figures,
            Figure("messages to a Flower app a second, beside Flower on Ray", 1000 / more, 1000 / theirs, theirs / more, RATIO),
        ]


def _on_ray(server: Any, client: Any) -> None:
    from flwr.simulation import run_simulation

    resources: Any = {"client_resources": {"num_cpus": 1, "num_gpus": 0.0}, "init_args": {"num_cpus": 2}}
    run_simulation(server, client, NODES, backend_config=resources)
