"""Messages of jobs as bytes: what a codec makes of a reply, one packed message a job, one after the other in an object."""

# m: jobs

import json
import mmap
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fedsim.base.errors import BrokenMessage
from fedsim.base.keys import fold
from fedsim.base.rows import Rows, as_sent
from fedsim.codecs import Codec, pack

Shapes = tuple[tuple[str, str, tuple[int, ...]], ...]  # of one message: name, type as safetensors spells it, shape; by name
TYPES = {
    **{"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "BOOL": torch.bool},
    **{"I64": torch.int64, "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8},
}
PACKED = "packed"  # the part of an order that is a message: what a downlink's codec made of what nodes hear
KNOWN = "known to "  # how names of parts begin that are not heard: what a node must remember to decode its next message
LACKS = b'{"error": "it lacks what its message follows on"}'  # the head of a reply that asks for what was packed, as it is
_NAMES = {dtype: name for name, dtype in TYPES.items()}


def wired(codec: Codec, parts: Rows, link: Rows, key: Tensor) -> tuple[Rows, Rows]:
    """What travels of parts [m, ...], and the links' memory of after; `arrived` is the other end."""
    wire = codec.encode(parts, link, key)
    return wire, codec.decode(wire, link, key)[1]


def arrived(codec: Codec, wire: Rows, link: Rows, key: Tensor, like: Rows) -> tuple[Rows, Rows]:
    """Parts [m, ...] of what travelled, as an engine delivers them, and the links' memory of after."""
    parts, link = codec.decode(wire, link, key)
    return as_sent(parts, like), link


def messages(wire: Rows, count: int) -> tuple[Iterator[memoryview], list[int]]:
    """One for each of so many rows, as pieces of memory, and their sizes without the bytes that round them up to a multiple of 8.

    They are those of `pack`, but for their checksum, which is 0: the hash of the object that they stand in is checked.
    """
    wire = {name: rows.detach().cpu().contiguous() for name, rows in wire.items()}
    if not count:
        return iter(()), []
    head, places = _head({name: rows[0] for name, rows in wire.items()})
    flat = [wire[name].reshape(count, -1).view(torch.uint8).numpy() for name in places]
    size = len(head) + sum(rows[0].nbytes for rows in flat)
    padding = memoryview(bytes(-size % 8))
    return (piece for at in range(count) for piece in (memoryview(head), *(rows[at].data for rows in flat), padding)), [size] * count


def shapes(wire: Rows) -> Shapes:
    """Of one row's message."""
    return tuple(sorted((name, _NAMES[rows.dtype], tuple(rows.shape[1:])) for name, rows in wire.items()))


def due(codec: Codec, like: Rows, own: Rows) -> tuple[Shapes, Shapes]:
    """Shapes of a link's first message and of each later one, of replies like one row of `like`; `own` travels beside as it is."""
    sends, key = {name: rows[:1] for name, rows in like.items()}, fold(0, "shapes", torch.zeros(1, dtype=torch.int64))
    memory = codec.init(sends)
    first = codec.encode(sends, memory, key)
    later = codec.encode(sends, codec.decode(first, memory, key)[1], key)
    return shapes(first | own), shapes(later | own)


class Messages:
    """An object's messages, read where they lie in its file."""

    def __init__(self, file: Path) -> None:
        with file.open("rb") as source:
            self.raw = mmap.mmap(source.fileno(), 0, access=mmap.ACCESS_COPY)

    def head(self, start: int, size: int) -> tuple[dict[str, Any], int]:
        """What the message of `size` bytes from `start` on says of its tensors, and where these begin. Raises BrokenMessage."""
        length = int.from_bytes(self.raw[start : start + 4], "little")
        if not (start >= 0 and size >= 8 and start + size <= len(self.raw) and length <= size - 8):
            raise BrokenMessage(f"a message of {size:,} bytes that is none")
        try:
            found = json.loads(self.raw[start + 8 : start + 8 + length])
            found.pop("__metadata__", None)
            return found, start + 8 + length
        except (ValueError, AttributeError, RecursionError) as error:
            raise BrokenMessage("a message whose head makes no sense") from error

    def shapes(self, start: int, size: int) -> Shapes:
        """Raises BrokenMessage where the numbers don't fill the message exactly."""
        found, begin = self.head(start, size)
        try:
            told = tuple(sorted((name, one["dtype"], tuple(one["shape"])) for name, one in found.items()))
            bounds = sorted(tuple(one["data_offsets"]) for one in found.values())
            sizes = {name: torch.Size(shape).numel() * TYPES[dtype].itemsize for name, dtype, shape in told}
            sized = all(one["data_offsets"][1] - one["data_offsets"][0] == sizes[name] for name, one in found.items())
        except (KeyError, TypeError, ValueError, IndexError, RuntimeError) as error:
            raise BrokenMessage("a message whose head makes no sense") from error
        ends = [0, *(end for _, end in bounds)]
        if not sized or [start for start, _ in bounds] != ends[:-1] or ends[-1] != start + size - begin:
            raise BrokenMessage("a message whose numbers don't fill it")
        return told

    def rows(self, places: Sequence[tuple[int, int]]) -> Rows:
        """The messages at these places (start, size), all of the same shapes, as rows [m, ...]; of one message views of the file."""
        several: dict[str, list[Tensor]] = {}
        for start, size in places:
            found, begin = self.head(start, size)
            for name, one in found.items():
                dtype, (a, b) = TYPES[one["dtype"]], one["data_offsets"]
                empty, count = torch.empty(0, dtype=dtype), (b - a) // dtype.itemsize
                tensor = torch.frombuffer(self.raw, dtype=dtype, count=count, offset=begin + a) if count else empty
                several.setdefault(name, []).append(tensor.view(1, *one["shape"]))
        return {name: tensors[0] if len(tensors) == 1 else torch.cat(tensors) for name, tensors in several.items()}


def in_bytes(wire: Rows) -> Tensor:
    """Rows [m, ...] as packed messages, uint8 [m, bytes]; as in `messages` their checksums are 0."""
    wire = {name: rows.detach().cpu().contiguous() for name, rows in wire.items()}
    head, places = _head({name: rows[0] for name, rows in wire.items()})
    flat = [wire[name].view(len(wire[name]), wire[name][0].numel()).view(torch.uint8) for name in places]
    return torch.cat([torch.frombuffer(bytearray(head), dtype=torch.uint8).expand(len(flat[0]), -1), *flat], 1)


def out_of_bytes(packed: Tensor) -> Rows:
    """The parts [m, ...] of such messages, which are of the same shapes."""
    begin = 8 + int.from_bytes(packed[0, :4].numpy().tobytes(), "little")
    found = json.loads(packed[0, 8:begin].numpy().tobytes())
    parts = {name: (TYPES[one["dtype"]], one["shape"], *one["data_offsets"]) for name, one in found.items()}
    return {
        name: packed[:, begin + a : begin + b].clone(memory_format=torch.contiguous_format).view(dtype).view(len(packed), *shape)
        for name, (dtype, shape, a, b) in parts.items()
    }


def _head(row: Rows) -> tuple[bytes, list[str]]:
    """What a packed row begins with, without its checksum, and its parts in the order in which they follow."""
    first = pack(row)
    end = 8 + int.from_bytes(first[:4], "little")
    places = {name: one["data_offsets"][0] for name, one in json.loads(first[8:end]).items()}
    return first[:4] + bytes(4) + first[8:end], sorted(places, key=lambda name: places[name])


def numbers(file: Path, dtype: str, shape: Sequence[int]) -> torch.Tensor:
    """A tensor as it lies in a file."""
    size, kind = torch.Size(shape), getattr(torch, dtype)
    if not size.numel():
        return torch.empty(size, dtype=kind)
    return torch.from_file(str(file), shared=False, size=size.numel(), dtype=kind).view(size)
