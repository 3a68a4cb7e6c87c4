"""What an object is called: the 32 bytes of BLAKE3 over its content (O'Connor, Aumasson, Neves, Wilcox-O'Hearn, 2020,
https://github.com/BLAKE3-team/BLAKE3-specs), as safe as SHA-256 and some times faster where the processor helps neither."""

from pathlib import Path

from blake3 import blake3 as Naming

from fedsim.transport.messages_pb2 import Object

__all__ = ["Naming", "begun", "file_name", "named"]


def named(content: bytes) -> Object:
    """A content's name and size."""
    return Object(hash=Naming(content).digest(), size=len(content))


def begun(file: Path, size: int) -> Naming:
    """The running hash of a file's first bytes. Raises OSError where it can't be read."""
    running = Naming()
    with file.open("rb") as content:
        while size and (piece := content.read(min(size, 1 << 20))):
            running.update(piece)
            size -= len(piece)
    return running


def file_name(file: Path) -> bytes:
    """The name of all that a file has. Raises OSError where it can't be read."""
    return begun(file, file.stat().st_size).digest()
