"""The process in which a worker trains: apart from the network, so that a long step does not look like death."""

import json
import multiprocessing
import os
import signal
import threading
import traceback
from dataclasses import replace
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from fedsim.base.errors import FedsimError, RunError, blame
from fedsim.base.visible import one_line
from fedsim.transport.messages_pb2 import Order, Reply


def prepare(
    folder: Path, scenario: dict[str, Any], code: Path, data: Path | None, device: str | None, nodes: list[int]
) -> tuple[Any, dict[str, Any]]:
    """A trainer for what a server sent, or a part of a run of peers, and what was found here.

    Raises FedsimError where the scenario can't be built.
    """
    import torch

    from fedsim import __version__
    from fedsim.base.rows import model_hash
    from fedsim.deploy import own
    from fedsim.deploy.peers.letters import longest
    from fedsim.deploy.peers.member import Member, Part, join
    from fedsim.deploy.peers.replica import Replica
    from fedsim.deploy.reality import Reality
    from fedsim.deploy.recorded import Recorded
    from fedsim.deploy.trainer import Trainer
    from fedsim.method.replicated import Replicated
    from fedsim.run.building import Tasks, assemble
    from fedsim.run.resume import reload
    from fedsim.run.runfolder import code_hash, write_scenario
    from fedsim.scenario.parts import part_name

    for name in scenario["own"]:
        if Path(name).is_absolute() or ".." in Path(name).parts:
            raise FedsimError(f"the server names own code outside of {code.resolve()}: {one_line(name)}")
        if not (code / name).is_file():
            raise FedsimError(f"{code / name}: missing; own code never comes over the wire, it must lie there already")
    write_scenario(folder, scenario["resolved"], {name: code / name for name in scenario["own"]})
    loaded = reload(folder, [*([f"engine.device={device}"] if device else []), "track=none", "checkpoint=none"], {})
    alone = own.is_own(loaded)
    task = own.of_nodes(loaded, [(nodes, data or code)], scenario["labels"], scenario["apart"]) if alone else Tasks().get(loaded)
    strategy = loaded.scenario.strategy
    kind = Replica if isinstance(strategy, Replicated) else Member if strategy.schedule.peers else None
    task = replace(task, elsewhere=True, apart=True) if alone and kind else task
    run = join(loaded, task, kind) if kind else assemble(loaded, task, Reality, Recorded)
    fed = run.fed
    facts: dict[str, Any] = {"version": __version__, "torch": torch.__version__, "hash": loaded.hash, "code": code_hash(loaded.own)}
    facts |= {"data": fed.task.hash(), "parameters": fed.task.layout.size, "settings": dict(loaded.flat)}
    facts |= {name: fed.worker.about[name] for name in ("device", "plan", "threads", "chunk", "precision")}
    facts |= {"counts": fed.task.sizes[nodes].tolist(), "model": part_name(loaded.scenario.task.model), "name": loaded.scenario.name}
    facts["hardware"] = torch.cuda.get_device_name(fed.worker.device).removeprefix("NVIDIA ") if fed.worker.device.type == "cuda" else ""
    if isinstance(run, Part):
        return run, facts | {"letter": longest(fed), "init": model_hash(fed.task.init)}
    return Trainer(fed, folder), facts


def main(pipe: Connection, setup: dict[str, Any]) -> None:
    """Serves the parent until it is gone: `order`, `settle`, `cancel` come in, `facts`, `reply`, `failed` go out."""
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
    if parent := multiprocessing.parent_process():
        threading.Thread(target=_end_with, args=(parent,), daemon=True).start()
    if setup["data"]:
        os.environ["FEDSIM_DATA"] = str(setup["data"])
    try:
        trainer, facts = setup.pop("prepare")(**setup)
    except Exception as error:
        pipe.send(("refused", str(error) if isinstance(error, FedsimError) else blame(error)))
        return
    if "letter" in facts:
        pipe.send(("facts", facts, []))
        trainer.play(pipe, Path(setup["folder"]), setup["nodes"])
        return
    trainer.say = lambda text: pipe.send(("log", text))
    pipe.send(("facts", facts, [(reply.SerializeToString(), str(file)) for reply, file in trainer.pending()]))
    while True:
        try:
            while not trainer.waiting or pipe.poll():
                _obey(trainer, *pipe.recv())
            for message in worked(trainer):
                pipe.send(message)
        except (EOFError, OSError):
            return


def worked(trainer: Any) -> list[tuple[Any, ...]]:
    """What there is to say of the next work: `reply` with the file of its content ("" where it failed), `log`."""
    try:
        reply, file = trainer.work()
        return [("reply", reply.SerializeToString(), str(file or ""))]
    except Exception as error:
        failed = Reply(jobs=error.jobs, head=json.dumps({"error": _why(error)}).encode())  # type: ignore[attr-defined]
        log = [] if isinstance(error, FedsimError) else [("log", traceback.format_exc())]
        return [("reply", failed.SerializeToString(), ""), *log]


def _end_with(parent: Any) -> None:
    """Ends this process when its worker's does, however that ends: nobody else may write to the folder of who comes next."""
    parent.join()
    os._exit(1)


def _why(error: Exception) -> str:
    return str(error) if isinstance(error, RunError) else blame(error)


def _obey(trainer: Any, what: str, *arguments: Any) -> None:
    match what:
        case "order":
            raw, files = arguments
            trainer.take(Order.FromString(raw), {name: Path(file) for name, file in files.items()})
        case "settle":
            trainer.settle(*arguments)
        case "cancel":
            trainer.cancel(arguments[0])


def start(setup: dict[str, Any]) -> tuple[Any, Connection]:
    """A new process, and the pipe to it."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    child = context.Process(target=main, args=(theirs, setup), daemon=True, name="fedsim trainer")
    child.start()
    theirs.close()
    return child, ours
