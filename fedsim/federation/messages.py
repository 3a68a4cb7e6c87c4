"""The log of messages of a run with replicas: what each merge took in, as bytes, from which a machine that joins rebuilds the state.

A log is MAGIC, the length of the head, the head (JSON: whose log it is) and a CRC-32; then a record a merge: how many messages, the
number of the merge, their nodes (int32) and jobs (int64), the messages as they were sent, field by field, the sha256 of the state that
they led to, and the CRC-32 of the log so far. Numbers are little-endian.
"""

# m: messages of a merge

import json
import os
import struct
import zlib
from collections.abc import Iterator, Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import numpy as np
import torch

from fedsim.base.clock import Ints
from fedsim.base.errors import FedsimError
from fedsim.base.files import writing
from fedsim.base.rows import Rows, model_hash
from fedsim.codecs import Codec
from fedsim.codecs.scalar import Scalars

MAGIC = b"fedsim m"
_COUNTS = struct.Struct("<IQ")  # messages, merge


class BrokenLog(FedsimError):
    """A log that is not whole, or of another run: nobody can join with it."""


class Record(NamedTuple):
    """One merge: its number, nodes and jobs of its messages, int64 [m] each, the messages, and the hash of the state of after."""

    version: int
    node: Ints
    job: Ints
    payload: bytes
    state: bytes


class MessageLog:
    """Written as the run goes. What is not yet in the file waits in memory, all of it where there is no file."""

    keeps: ClassVar[tuple[str, ...]] = ("length", "sum", "check")  # of what is in the file; nothing waits where a checkpoint is written

    def __init__(self, codec: Codec) -> None:
        self.codec, self.file, self.waiting = codec, Path(), bytearray()
        self.length = self.sum = self.check = 0  # bytes of the file, their CRC-32, and that of the records alone

    def open(self, about: Mapping[str, Any], file: Path | None = None) -> None:
        """Begins a log of the run that `about` tells apart, or goes on with the one in the file where it was kept.

        Raises FedsimError where the file lacks what was in it.
        """
        self.file = file or Path()
        if not self.length:
            text = json.dumps(dict(about)).encode()
            self.waiting.clear()
            self._append(MAGIC + len(text).to_bytes(4, "little") + text)
        if file and (self.length or file.exists()):
            if not file.exists() or file.stat().st_size < self.length:
                raise FedsimError(f"{file}: its end is missing")
            os.truncate(file, self.length)

    def add(self, version: int, node: Ints, job: Ints, parts: Rows, state: Rows) -> None:
        """A merge of messages with these parts [m, ...] as they were decoded."""
        parts = {name: rows.cpu() for name, rows in parts.items()}
        payload = b"".join(rows.contiguous().numpy().tobytes() for rows in wire_of(self.codec, parts).values()) if len(node) else b""
        head = _COUNTS.pack(len(node), version) + node.astype("<i4").tobytes() + job.astype("<i8").tobytes()
        self._append(head + payload + bytes.fromhex(model_hash(*state.values())))

    def _append(self, record: bytes) -> None:
        self.check = zlib.crc32(record, self.check)
        self.waiting += record + self.check.to_bytes(4, "little")

    def flush(self) -> None:
        """Raises RunError where the file can't be written; what waits is kept then."""
        if self.file != Path() and self.waiting:
            with writing(self.file), self.file.open("ab") as out:
                out.truncate(self.length)
                out.write(self.waiting)
            self.sum = zlib.crc32(self.waiting, self.sum)
            self.length += len(self.waiting)
            self.waiting.clear()


def wire_of(codec: Codec, parts: Rows) -> Rows:
    """Messages as they travelled: codes of numbers are the same again for numbers that were decoded from them."""
    if not isinstance(codec, Scalars):
        return parts
    return codec.encode(parts, {}, torch.zeros(len(next(iter(parts.values()))), dtype=torch.int64))


def decoded(codec: Codec, payload: bytes, count: int, like: Rows) -> Rows:
    """The parts of `count` messages; `like` is one row of them. Raises RunError for bytes that the codec never makes."""
    wire, at = {}, 0
    for name, row in wire_of(codec, {name: torch.zeros_like(rows) for name, rows in like.items()}).items():
        size = row.nbytes * count
        wire[name] = torch.frombuffer(bytearray(payload[at : at + size]), dtype=row.dtype).view(count, *row.shape[1:])
        at += size
    return codec.decode(wire, {}, torch.zeros(count, dtype=torch.int64))[0] if isinstance(codec, Scalars) else wire


def read(raw: bytes, size: int) -> tuple[dict[str, Any], Iterator[Record]]:
    """Whose log it is, and its records; a message has `size` bytes. Both raise BrokenLog where it is cut short or was changed."""
    if raw[:8] != MAGIC:
        raise BrokenLog("it does not begin as a log of messages")
    end = 12 + int.from_bytes(raw[8:12], "little")
    check = _checked(raw, 0, end, 0, "its head")
    return json.loads(raw[12:end]), _records(raw, end + 4, check, size)


def _records(raw: bytes, at: int, check: int, size: int) -> Iterator[Record]:
    place = 0
    while at < len(raw):
        place += 1
        where = f"its record {place}"
        if len(raw) < at + _COUNTS.size:
            raise BrokenLog(f"{where} is cut short")
        count, version = _COUNTS.unpack_from(raw, at)
        bounds = np.cumsum([at + _COUNTS.size, 4 * count, 8 * count, size * count, 32]).tolist()
        check = _checked(raw, at, bounds[-1], check, where)
        node, job, payload, state = (raw[a:b] for a, b in pairwise(bounds))
        yield Record(version, np.frombuffer(node, "<i4").astype(np.int64), np.frombuffer(job, "<i8").astype(np.int64), payload, state)
        at = bounds[-1] + 4


def _checked(raw: bytes, start: int, end: int, check: int, what: str) -> int:
    """The checksum of the log up to `end`."""
    if len(raw) < end + 4:
        raise BrokenLog(f"{what} is cut short")
    check = zlib.crc32(raw[start:end], check)
    if raw[end : end + 4] != check.to_bytes(4, "little"):
        raise BrokenLog(f"{what}, or one before it, was changed or is missing: its checksum is wrong")
    return check
