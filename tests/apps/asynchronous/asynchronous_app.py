"""A ServerApp of its own, without a strategy: each reply is merged as it comes, and its node works on."""

import time
from time import sleep

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import ServerApp

client, server = ClientApp(), ServerApp()


@client.train()
def train(message, context):
    count = context.state["count"]["n"] + 1 if "count" in context.state else 1
    context.state["count"] = ConfigRecord({"n": count})
    node = context.node_config["partition-id"]
    metrics = MetricRecord({"num-examples": 1, "node": node, "count": count, "version": message.content["config"]["version"]})
    return Message(RecordDict({"arrays": ArrayRecord({"x": Array(np.full(3, float(node)))}), "metrics": metrics}), reply_to=message)


@server.main()
def main(grid, context):
    config = context.run_config
    began, flight, version, x = time.time(), {}, 0, np.zeros(3)

    def send(node):
        content = RecordDict({"arrays": ArrayRecord({"x": Array(x)}), "config": ConfigRecord({"version": version})})
        [name] = grid.push_messages([Message(content, node, "train", ttl=config["ttl"])])
        flight[name] = node

    for node in sorted(grid.get_node_ids()):
        send(node)
    log = []
    while version < config["updates"] and time.time() - began < config["seconds"]:
        for reply in grid.pull_messages(list(flight)):
            node = flight.pop(reply.metadata.reply_to_message_id)
            if reply.has_error():
                log += [reply.error.code, version, -1, round(1000 * (time.time() - began))]
            else:
                metrics = reply.content["metrics"]
                log += [metrics["node"], version, metrics["version"], round(1000 * (time.time() - began))]
                x, version = 0.5 * x + 0.5 * reply.content["arrays"]["x"].numpy(), version + 1
                context.state["now"] = MetricRecord({"accuracy": version / 100})
            send(node)
        if config["pause"]:
            sleep(config["pause"])
    context.state["log"] = ConfigRecord({"rows": log})
