"""Letters between workers: packed messages of some nodes for one step, as a file: the length of the head, the head (JSON), messages."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fedsim.base.errors import BrokenMessage
from fedsim.base.files import writing

if TYPE_CHECKING:
    from fedsim.federation.federation import Federation

LONGEST = 1 << 22  # bytes of a head


def write(file: Path, about: Mapping[str, Any], messages: Mapping[int, bytes]) -> None:
    """Raises RunError where it can't be written."""
    sizes = [[node, len(message)] for node, message in messages.items()]
    text = json.dumps({**about, "messages": sizes}).encode()
    with writing(file):
        file.parent.mkdir(parents=True, exist_ok=True)
        with file.open("wb") as out:
            out.write(len(text).to_bytes(4, "little") + text)
            out.writelines(messages.values())


def head(file: Path) -> dict[str, Any]:
    """What a letter says of itself. Raises BrokenMessage."""
    with file.open("rb") as source:
        size = int.from_bytes(source.read(4), "little")
        try:
            if size > LONGEST:
                raise ValueError
            about: dict[str, Any] = json.loads(source.read(size))
            about["messages"] = [[int(node), int(length)] for node, length in about["messages"]]
            about["round"], _ = int(about["round"]), int(str(about["tag"]).partition(">")[0])
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise BrokenMessage("a letter whose head makes no sense") from error
    about["start"] = 4 + size
    return about


def messages(file: Path, about: Mapping[str, Any]) -> Iterator[tuple[int, bytes]]:
    """Each node's message."""
    with file.open("rb") as source:
        source.seek(about["start"])
        for node, length in about["messages"]:
            yield node, source.read(length)


def longest(fed: "Federation") -> int:
    """Bytes of a letter, at most."""
    row: int = sum(rows[:1].nbytes for rows in fed.state.values()) + fed.task.first_buffers.nbytes
    return 2 * fed.nodes * (row + fed.flight.peer_bytes) + (1 << 20)
