"""fedsim's ClientApp: one message of a node, worked on in a process of its own that finds what its nodes remember on the disk."""

import json
import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from hashlib import sha256
from pathlib import Path
from shutil import rmtree
from time import monotonic, sleep
from typing import Any

from flwr.app import Context, Message
from flwr.clientapp import ClientApp

from fedsim.base.errors import FedsimError, blame
from fedsim.base.visible import is_folder_name, one_line
from fedsim.deploy.training import prepare, worked
from fedsim.flower import envelope
from fedsim.flower.app import is_app
from fedsim.run.runfolder import lock
from fedsim.transport.messages_pb2 import Reply
from fedsim.transport.nodes import Nodes, parse

PATIENCE = 60.0  # seconds in which another process may be at work for the same nodes
LONGEST = 60  # characters of a folder's name


def made() -> ClientApp:
    """The app: `query` says what is found here, `train` does jobs."""
    app = ClientApp()
    app.query()(query)
    app.train()(train)
    return app


def query(message: Message, context: Context) -> Message:
    """What was found here, and which replies wait; or why this node can't take part."""
    try:
        with _trainer(message, context) as (trainer, facts, nodes):
            facts |= {"nodes": str(nodes), "waiting": [job for reply, _ in trainer.pending() for job in reply.jobs]}
    except FedsimError as error:
        facts = {"refused": str(error)}
    except Exception as error:
        facts = {"refused": blame(error)}
    return Message(envelope.told(facts), reply_to=message)


def train(message: Message, context: Context) -> Message:
    """Does what the order says but for what was done before; replies that wait for a word are sent again."""
    with _trainer(message, context) as (trainer, _, _):
        objects = trainer.folder / "objects"
        order, settled, files = envelope.to_do(message.content, objects)
        trainer.settle(settled.kept, settled.gone)
        trainer.take(order, files)
        replies = list[tuple[Reply, Path | None]]()
        while trainer.waiting:
            for what, told, *file in worked(trainer):
                if what == "log":
                    print(told, file=sys.stderr)
                elif not file[0]:
                    replies.append((Reply.FromString(told), None))
        wanted = {job.id for job in order.jobs}
        replies += [(reply, file) for reply, file in trainer.pending() if wanted.intersection(reply.jobs)]
        answer = envelope.answered(replies)
        rmtree(objects, ignore_errors=True)
    return Message(answer, reply_to=message)


@contextmanager
def _trainer(message: Message, context: Context) -> Iterator[tuple[Any, dict[str, Any], Nodes]]:
    """A trainer for the node's folder, which nobody else works in meanwhile, and what was found. Raises FedsimError where it can't be."""
    about, config = envelope.About.of(message.content), context.node_config
    nodes = hosted(config)
    if other := [part[-1] for part in nodes.ranges if part[-1] >= about.nodes]:
        raise FedsimError(f"there is no node {other[0]}; this run has nodes 0..{about.nodes - 1}")
    if not is_folder_name(about.run):
        raise FedsimError(f"the run has a name that no folder may have: {one_line(about.run)}")
    data = Path(str(config["data"])).resolve() if "data" in config else None
    if data and not data.is_dir():
        raise FedsimError(f"node config `data`: there is no folder {data}")
    if data:
        os.environ["FEDSIM_DATA"] = str(data)
    device = str(config["device"]) if "device" in config else None
    folder = home(config) / about.run / _short(str(nodes))
    with _held(folder):
        code = (app_folder() / about.beside).resolve()
        yield *prepare(folder, json.loads(about.scenario), code, data, device, [*nodes]), nodes


def hosted(config: Mapping[str, Any]) -> Nodes:
    """The nodes that a SuperNode hosts, by its node config. Raises FedsimError where it does not tell."""
    for key in ("nodes", "partition-id"):
        if key in config:
            try:
                if found := parse(str(config[key]), word=""):
                    return found
            except ValueError as error:
                raise FedsimError(f"node config `{key}`: {error}") from None
    raise FedsimError("node config: `partition-id=3` or `nodes='0..4'` is due, which say whom a SuperNode hosts")


def home(config: Mapping[str, Any]) -> Path:
    """Where nodes' memories lie: node config `folder`, by default `fedsim` in FLWR_HOME."""
    return Path(str(config["folder"])) if "folder" in config else Path(os.environ.get("FLWR_HOME") or Path.home() / ".flwr") / "fedsim"


def app_folder() -> Path:
    """Where Flower has unpacked the app that runs. Raises FedsimError where that is not to be found."""
    for place in map(Path, sys.path):
        if is_app(place):
            return place
    raise FedsimError("there is no app on the import path; start it with `flwr run`")


def _short(name: str) -> str:
    return name if len(name) <= LONGEST else sha256(name.encode()).hexdigest()[:16]


@contextmanager
def _held(folder: Path) -> Iterator[None]:
    """Nobody else works in the folder meanwhile. Raises FedsimError where somebody does for long."""
    folder.mkdir(parents=True, exist_ok=True)
    end = monotonic() + PATIENCE
    while True:
        try:
            held = lock(folder)
            break
        except FedsimError:
            if monotonic() > end:
                raise
            sleep(0.2)
    try:
        yield
    finally:
        os.close(held)
