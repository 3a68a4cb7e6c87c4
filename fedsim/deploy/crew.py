"""Training's processes of one worker, one for each of its devices: node n is with device n mod their number."""

import asyncio
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from fedsim.base.crashes import ending
from fedsim.base.errors import FedsimError, HostError
from fedsim.base.text import counted
from fedsim.deploy.training import start
from fedsim.transport.messages_pb2 import Order


class Died(HostError):
    """A process of training has ended by itself."""


def folders(folder: Path, devices: int) -> list[Path]:
    """Where each device keeps what its nodes remember: the run's own folder where there is one device.

    Raises FedsimError where another number of devices has begun there, since nodes would not find their memories.
    """
    before = {int(one.parent.name.rpartition("-")[2]) for one in folder.glob("device-*/outbox")} | {1 for _ in folder.glob("outbox")}
    if other := before - {devices}:
        had, are = counted(min(other), "device"), counted(devices, "device")
        raise FedsimError(f"--device: {folder} was begun with {had}, where its nodes' memories lie; with {are} they would not be found")
    return [folder] if devices == 1 else [folder / f"device-{at}-of-{devices}" for at in range(devices)]


class Crew:
    """Processes that are told things through pipes and say things, which `heard` is told in the event loop; `died` why one ended."""

    def __init__(self, setup: dict[str, Any], devices: Sequence[str | None]) -> None:
        """Starts them; raises FedsimError as `folders` does."""
        places = folders(setup["folder"], len(devices))
        told = [setup | {"device": device, "folder": folder} for device, folder in zip(devices, places, strict=True)]
        self.all: list[tuple[Any, Connection]] = [start(one) for one in told]
        self.listening = False

    def found(self) -> tuple[dict[str, Any], list[tuple[bytes, str]]]:
        """What training found here, and replies that wait. Raises FedsimError where it refuses."""
        facts, waiting = list[dict[str, Any]](), list[tuple[bytes, str]]()
        for at in range(len(self.all)):
            said = self._receive(at)
            if said is None or said[0] == "refused":
                raise FedsimError(said[1] if said else self._end(at))
            facts.append(said[1])
            waiting += said[2]
        if len(facts) > 1 and "letter" in facts[0]:
            raise FedsimError("--device: among peers a worker has one; `fedsim join` for each, with its own --folder and --nodes")
        return facts[0] | ({"device": ", ".join(one["device"] for one in facts)} if "device" in facts[0] else {}), waiting

    def listen(self, heard: Callable[..., None], died: Callable[[Died], None]) -> None:
        """Hears them from now on, each in a thread, until their processes end."""
        loop, self.listening = asyncio.get_running_loop(), True
        for at in range(len(self.all)):
            threading.Thread(target=self._hear, args=(at, loop, heard, died), name="fedsim trainer's words", daemon=True).start()

    def tell(self, *message: Any) -> None:
        """All hear it."""
        for _, pipe in self.all:
            with suppress(OSError):  # `_hear` finds out
                pipe.send(message)

    def order(self, order: Order, files: dict[bytes, str]) -> None:
        """Each hears of its nodes' jobs; the others' are done with, for it."""
        for at, (_, pipe) in enumerate(self.all):
            others = [job.id for job in order.jobs if job.node % len(self.all) != at]
            if len(others) < len(order.jobs):
                mine = Order()
                mine.CopyFrom(order)
                mine.done.extend(others)
                with suppress(OSError):
                    pipe.send(("order", mine.SerializeToString(), files))

    def close(self) -> None:
        """Ends them. A pipe that a thread reads is closed once that has read the end."""
        for child, pipe in self.all:
            child.kill()
            if not self.listening:
                pipe.close()

    def _receive(self, at: int) -> Any:
        try:
            return self.all[at][1].recv()
        except (EOFError, OSError):
            return None

    def _end(self, at: int) -> str:
        child = self.all[at][0]
        child.join(5)
        return f"training's process {ending(child.exitcode)}"

    def _hear(self, at: int, loop: asyncio.AbstractEventLoop, heard: Callable[..., None], died: Callable[[Died], None]) -> None:
        while (message := self._receive(at)) is not None:
            with suppress(RuntimeError):
                loop.call_soon_threadsafe(heard, *message)
        with suppress(RuntimeError):  # the loop has ended, and the pipe goes with it
            loop.call_soon_threadsafe(self.all[at][1].close)  # there, for the loop may just be sending
            loop.call_soon_threadsafe(died, Died(self._end(at)))
