"""Many workers in one process, each with a session, a store and an outbox of its own: they share data and model, and train in turn.

`python -c "import crowd; crowd.main()" HOST:PORT COUNT`: each has one node. For what a server takes, where so many machines have no room.
"""

import asyncio
import sys
from pathlib import Path
from threading import Lock
from typing import Any

from deployed import in_a_thread

from fedsim.deploy import crew, join, trainer
from fedsim.deploy.training import prepare
from fedsim.transport.identity import WorkerIdentity

ALONE = Lock()
shared = list[Any]()  # the federation of the first worker, and what it found


class InTurn(trainer.Trainer):
    """One of them trains at a time."""

    def __init__(self, fed: Any, folder: Path) -> None:
        super().__init__(fed, folder)
        self.fed = fed

    def work(self) -> Any:
        with ALONE:
            return super().work()


def prepared(folder: Path, nodes: list[int], **setup: Any) -> tuple[trainer.Trainer, dict[str, Any]]:
    """A worker's trainer; the first one's data, model and engine are all others', too."""
    if not shared:
        first, facts = prepare(folder=folder, nodes=nodes, **setup)
        shared[:] = first.fed, facts
        return first, facts
    fed, facts = shared
    return InTurn(fed, folder), facts | {"counts": fed.task.sizes[nodes].tolist()}


async def _all(target: str, count: int) -> None:
    workers = [join.Machine(target, str(node), Path(f"worker-{node}"), Path()) for node in range(count)]
    for why in await asyncio.gather(*(join.work(one, WorkerIdentity(insecure=True), lambda _: None) for one in workers)):
        print(why)


def main() -> None:
    trainer.Trainer = InTurn  # type: ignore[misc]
    crew.start = lambda setup: in_a_thread(setup | {"prepare": prepared})
    asyncio.run(_all(sys.argv[1], int(sys.argv[2])))
