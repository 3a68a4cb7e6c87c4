"""Pieces of objects as bytes of the message that `messages.proto` calls Piece, read and made by hand where their data are.

What comes out is what protobuf makes of it, but protobuf copies the data once more at the sender and twice at the receiver.
"""

import os
import re
from typing import NamedTuple

from google.protobuf.message import DecodeError
from xxhash import xxh3_64_intdigest

from fedsim.base.errors import BrokenMessage, HostError
from fedsim.transport.messages_pb2 import Piece
from fedsim.transport.wire import SERVICE, aside

NOW = getattr(os, "RWF_NOWAIT", None)  # reads what memory has of a file, and no more
HEAD = re.compile(rb"(\x10[\x80-\xff]{0,8}[\0-\x7f])?\x1a([\x80-\xff]{0,4}[\0-\x7f])")  # `offset` unless 0, and how many bytes follow
CHECK = b"\x21"  # what follows them
DOWNLOAD, UPLOAD = f"/{SERVICE}/Download", f"/{SERVICE}/Upload"  # calls whose pieces are read and made here


class Cut(NamedTuple):
    """Bytes of an object from `offset` on, as they lie in the message that they travel in, with their check."""

    message: bytes
    offset: int
    data: memoryview
    check: int


def check_of(data: memoryview | bytes) -> int:
    """What tells a piece that was damaged on its way: XXH3 of 64 bits (Collet, https://github.com/Cyan4973/xxHash)."""
    return xxh3_64_intdigest(data)


def packed(offset: int, data: memoryview | bytes) -> Cut:
    """A piece, as protobuf would write it."""
    check, length = check_of(data), len(data)
    head = Piece(offset=offset).SerializeToString() + b"\x1a" + _varint(length)
    message = b"".join((head, data, CHECK, check.to_bytes(8, "little")))
    return Cut(message, offset, memoryview(message)[len(head) : len(head) + length], check)


def opened(message: bytes) -> Cut:
    """A piece that came. Raises BrokenMessage for bytes that are none."""
    if head := HEAD.match(message):
        end = head.end() + _number(head[2])
        if len(message) == end + 9 and message[end : end + 1] == CHECK:
            offset = _number(head[1][1:]) if head[1] else 0
            return Cut(message, offset, memoryview(message)[head.end() : end], int.from_bytes(message[end + 1 :], "little"))
    piece = parsed(message)  # in another order, or with more in it
    return Cut(message, piece.offset, memoryview(piece.data), piece.check)


def parsed(message: bytes) -> Piece:
    """With all that a piece may have. Raises BrokenMessage for bytes that are none."""
    piece = Piece()
    try:
        piece.ParseFromString(message)
    except DecodeError as error:
        raise BrokenMessage("bytes that are no message") from error
    return piece


async def fill(room: memoryview, file: int, offset: int) -> None:
    """Reads from a file: at once what memory has, else in a thread, for disks may take long. Raises HostError where it ends before."""
    try:
        size = os.preadv(file, [room], offset, NOW) if NOW is not None else 0
    except OSError:  # it has not all, or this file system can't say
        size = 0
    if size < len(room) and await aside(os.preadv, file, [room], offset) < len(room):
        raise HostError("a file is shorter than it was")


def _varint(number: int) -> bytes:
    """Seven bits a byte, the lowest first; all but the last have their highest bit set."""
    found = bytearray()
    while number > 127:
        found.append(number & 127 | 128)
        number >>= 7
    return bytes((*found, number))


def _number(varint: bytes) -> int:
    return sum((byte & 127) << 7 * at for at, byte in enumerate(varint))
