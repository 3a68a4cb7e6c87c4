"""Differential privacy as Flower has it: clipped by a mod at the client, noise from the strategy's wrapper."""

import numpy as np
from flwr.app import Array, ArrayRecord, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.clientapp.mod import fixedclipping_mod
from flwr.serverapp import ServerApp
from flwr.serverapp.strategy import DifferentialPrivacyClientSideFixedClipping, FedAvg

client, server = ClientApp(), ServerApp()


@client.train(mods=[fixedclipping_mod])
def train(message, context):
    x = message.content["arrays"]["x"].numpy() + 10.0 * (1 + context.node_config["partition-id"])
    return Message(RecordDict({"arrays": ArrayRecord({"x": Array(x)}), "metrics": MetricRecord({"num-examples": 1})}), reply_to=message)


@server.main()
def main(grid, context):
    inner = FedAvg(fraction_train=1.0, fraction_evaluate=0.0, min_train_nodes=2, min_available_nodes=2)
    strategy = DifferentialPrivacyClientSideFixedClipping(inner, noise_multiplier=0.5, clipping_norm=1.0, num_sampled_clients=5)
    context.state["x"] = strategy.start(grid, ArrayRecord({"x": Array(np.zeros(4))}), context.run_config["rounds"]).arrays
