"""Logistic regression, 5 numbers; each node has 20 samples of its own and trains by gradient descent on all of them."""

import numpy as np
from flwr.app import Array, ArrayRecord, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

app = ClientApp()


def data(number):
    lot = np.random.default_rng(number)
    x = lot.normal(size=(20, 5))
    return x, (x @ np.array([1.0, -2.0, 3.0, 0.5, 0.0]) + lot.normal(size=20) > 0).astype(np.float64)


def probability(x, w):
    return 1 / (1 + np.exp(-x @ w))


def tested(x, y, w):
    p = np.clip(probability(x, w), 1e-9, 1 - 1e-9)
    loss = -np.mean(y * np.log(p) + (1 - y) * np.log(1 - p))
    return {"eval_loss": float(loss), "eval_acc": float(np.mean((p > 0.5) == (y > 0.5)))}


@app.train()
def train(message, context):
    node = context.node_config["partition-id"]
    (x, y), w = data(node), message.content["arrays"]["w"].numpy()
    for _ in range(context.run_config.get("steps", 3)):
        w = w - 0.5 * x.T @ (probability(x, w) - y) / len(y)
    metrics = MetricRecord({"num-examples": 10 + node, "train_loss": tested(x, y, w)["eval_loss"]})
    return Message(RecordDict({"arrays": ArrayRecord({"w": Array(w)}), "metrics": metrics}), reply_to=message)


@app.evaluate()
def evaluate(message, context):
    node = context.node_config["partition-id"]
    metrics = tested(*data(1000 + node), message.content["arrays"]["w"].numpy())
    return Message(RecordDict({"metrics": MetricRecord(metrics | {"num-examples": 20})}), reply_to=message)
