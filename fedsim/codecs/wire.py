"""A wire as bytes: safetensors of its typed rows, with a checksum."""

import zlib
from functools import lru_cache

import safetensors
import safetensors.torch
import torch

from fedsim.base.errors import BrokenMessage
from fedsim.base.rows import Rows


def pack(wire: Rows) -> bytes:
    """The bytes of a message on a real network: safetensors of its typed rows.

    The upper half of the eight bytes that say how long the header is would always be 0, and has the CRC-32 of all the rest.
    """
    plain = safetensors.torch.save({name: rows.clone(memory_format=torch.contiguous_format) for name, rows in wire.items()})
    return plain[:4] + _checksum(plain) + plain[8:]


def unpack(message: bytes) -> Rows:
    """What `pack` was given. Raises BrokenMessage for anything else."""
    plain = message[:4] + bytes(4) + message[8:]
    if len(message) < 8:
        raise BrokenMessage(f"a message of {len(message)} bytes has no header")
    if message[4:8] != _checksum(plain):
        raise BrokenMessage(f"a message of {len(message):,} bytes is cut short or was changed on its way: its checksum is wrong")
    try:
        return safetensors.torch.load(plain)
    except (safetensors.SafetensorError, ValueError) as error:
        raise BrokenMessage(f"a message of {len(message):,} bytes is no safetensors: {error}") from error


def _checksum(plain: bytes) -> bytes:
    return zlib.crc32(plain).to_bytes(4, "little")


@lru_cache(maxsize=1024)
def _packed_size(shapes: tuple[tuple[str, torch.Size, torch.dtype], ...]) -> int:
    return len(pack({name: torch.zeros(shape, dtype=dtype) for name, shape, dtype in shapes}))


def row_bytes(wire: Rows) -> int:
    """Length of one row's message, header included: that of a packed message of these shapes."""
    return _packed_size(tuple((name, rows.shape[1:], rows.dtype) for name, rows in wire.items())) if wire else 0
