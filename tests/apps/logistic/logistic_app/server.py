"""Flower's own strategies by name."""

import numpy as np
from flwr.app import Array, ArrayRecord, MetricRecord
from flwr.serverapp import ServerApp
from flwr.serverapp.strategy import FedAdam, FedAvg, Krum

from logistic_app.client import data, tested

app = ServerApp()
STRATEGIES = {"fedavg": FedAvg, "fedadam": FedAdam, "krum": Krum}


def evaluated(round, arrays):
    x, y = data(10**6)
    return MetricRecord({"accuracy": tested(x, y, arrays["w"].numpy())["eval_acc"]})


@app.main()
def main(grid, context):
    config = context.run_config
    own = {"num_malicious_nodes": 1} if config["strategy"] == "krum" else {}
    strategy = STRATEGIES[config["strategy"]](
        fraction_train=config["fraction"], fraction_evaluate=config["fraction"], min_train_nodes=2, min_evaluate_nodes=2, **own
    )
    found = strategy.start(
        grid, ArrayRecord({"w": Array(np.zeros(5))}), config["rounds"], evaluate_fn=evaluated if config["evaluates"] else None
    )
    context.state["w"] = found.arrays
