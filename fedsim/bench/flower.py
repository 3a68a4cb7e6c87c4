"""Flower apps in a simulated world: what a message costs beside the ClientApp alone, and beside Flower's own simulation on Ray."""

import logging
from importlib.util import find_spec
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

from fedsim.bench.figures import Figure, limit, say

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
import time
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
    began = time.perf_counter()
    lot = np.random.default_rng(context.node_config["partition-id"])
    x = lot.normal(size=(64, 50))
    y, w = x[:, 0] > 0, message.content["arrays"]["w"].numpy()
    for _ in range(5):
        w = w - 0.5 * x.T @ (1 / (1 + np.exp(-x @ w)) - y) / 64
    content = {{"arrays": ArrayRecord({{"w": Array(w)}})}}
    content["metrics"] = MetricRecord({{"num-examples": 64, "seconds": time.perf_counter() - began}})
    return Message(RecordDict(content), reply_to=message)


@server.main()
def main(grid, context):
    strategy = FedAvg(fraction_train=0.1, fraction_evaluate=0.0, min_train_nodes=10, min_available_nodes={NODES})
    start = ArrayRecord({{"w": Array(np.zeros(50))}})
    for rounds in (3, {ROUNDS}):  # the first is not measured: processes start
        began = timeit.default_timer()
        result = strategy.start(grid, start, rounds)
        spent = timeit.default_timer() - began
    work = np.mean([record["seconds"] for record in result.train_metrics_clientapp.values()])
    found.append((spent / (10 * {ROUNDS}), work))
"""


def flower(trials: int) -> list[Figure]:
    """Logistic regression under Flower's FedAvg, 100 nodes, a cohort of 10: host's time a message, start-up and the ClientApp's work
    excluded. The strategy's own work is in it on both sides."""
    from fedsim.flower.app import load, read
    from fedsim.flower.settings import around
    from fedsim.flower.simulate import Simulation

    with TemporaryDirectory() as place:
        folder = Path(place)
        (folder / "pyproject.toml").write_text(PROJECT)
        (folder / "fedsim_bench_app.py").write_text(CODE)
        (folder / "world.yaml").write_text("world: {compute: {job: 1 s}, network: {up: 1 MB/s, down: 1 MB/s}}\ntrack: none\n")
        app, found = read(folder), load("fedsim_bench_app:found", folder)
        logging.getLogger("flwr").setLevel(logging.ERROR)
        for trial in range(trials + 1):
            say(f"simulated world: trial {trial} of {trials}")
            Simulation(app, NODES, around(folder / "world.yaml", NODES), {}).execute(folder / f"run {trial}")
        ours = [1000 * (spent - work) for spent, work in found[1:]]
        figures = [limit("a message to a Flower app in a simulated world, ms more than its work", median(ours), MOST)]
        if find_spec("ray") is None:
            print("Flower's own simulation is not measured: ray is not installed (extra `ray`)", flush=True)
            return figures
        found.clear()
        say("Flower's simulation on Ray")
        _on_ray(load("fedsim_bench_app:server", folder), load("fedsim_bench_app:client", folder))
        [(spent, work)] = found
        ratio = 1000 * (spent - work) / median(ours)
        figures.append(
            Figure("messages to a Flower app a second, beside Flower on Ray", 1000 / median(ours), 1 / (spent - work), ratio, RATIO)
        )
    return figures


def _on_ray(server: Any, client: Any) -> None:
    from flwr.simulation import run_simulation

    resources = {"client_resources": {"num_cpus": 1, "num_gpus": 0.0}, "init_args": {"num_cpus": 2}}
    run_simulation(server, client, NODES, backend_config=resources)
