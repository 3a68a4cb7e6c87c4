"""Objects piece by piece, in either direction: from a file on, and into a file from its committed offset."""

from collections.abc import Awaitable, Callable
from pathlib import Path
from time import monotonic

from fedsim.transport.messages_pb2 import Object, Piece
from fedsim.transport.objects import Store
from fedsim.transport.wire import Pace, aside, cut


async def send(file: Path, offset: int, write: Callable[[Piece], Awaitable[None]]) -> int:
    """Writes a file's bytes from an offset on; the offset of their end."""
    pace = Pace()
    while (piece := await aside(cut, file, offset, pace.size)).data:
        begin = monotonic()
        await write(piece)
        pace.took(monotonic() - begin)
        offset += len(piece.data)
    return offset


async def receive(
    store: Store,
    wanted: Object,
    owner: str,
    read: Callable[[], Awaitable[Piece | None]],
    committed: Callable[[int], Awaitable[None]],
) -> Path | None:
    """Reads pieces into the store until the object is whole there; None where they end before. `committed` hears first where to begin.

    Raises BrokenMessage for a piece that doesn't fit, and RunError where it can't be written; what came before stays.
    """
    partial = await aside(store.partial, wanted, owner)
    try:
        await committed(partial.offset)
        while not partial.whole:
            piece = await read()
            if piece is None:
                return None
            await aside(partial.append, piece.offset, piece.data, piece.crc)
            if not partial.whole:
                await committed(partial.offset)
        file = await aside(partial.finish)
        await committed(wanted.size)
        return file
    finally:
        partial.close()
