"""Contents named by the hash of their bytes, as files of one folder; receptions that were cut wait there and go on."""

import errno
import os
import re
import tempfile
from collections import Counter
from collections.abc import Collection, Iterable
from pathlib import Path
from threading import RLock

from fedsim.base.errors import BrokenMessage, HostError
from fedsim.base.files import writing
from fedsim.transport.messages_pb2 import Object
from fedsim.transport.naming import Naming, begun, file_name
from fedsim.transport.pieces import Cut, check_of

_OBJECT = re.compile(r"[0-9a-f]{64}")
FULL = (errno.ENOSPC, errno.EDQUOT)


class NoRoom(HostError):
    """The disk is full; what came so far stays, and the reception goes on from there when there is room."""


class Store:
    """Objects in a folder, each a file named by its hash.

    What is put or adopted is kept until it is dropped, however often it was put; so is what lay there before. What the transport hands on
    or has out is pinned, each time once, and stays as long whoever drops it. With `sync` an object is on the disk, not only on its way
    there, before anybody hears of it.
    """

    def __init__(self, folder: Path, *, sync: bool = False) -> None:
        self.folder, self.sync = folder, sync
        with writing(folder):
            folder.mkdir(parents=True, exist_ok=True)
        self._lock = RLock()
        self._kept = {bytes.fromhex(file.name) for file in folder.iterdir() if _OBJECT.fullmatch(file.name)}
        self._pins: Counter[bytes] = Counter()

    def path(self, name: bytes) -> Path:
        """Where the object of this hash lies, or would lie."""
        return self.folder / name.hex()

    def has(self, name: bytes) -> bool:
        return name in self._kept or self._pins[name] > 0

    def keep(self, name: bytes) -> None:
        """From now on it stays until it is dropped; it must be there."""
        with self._lock:
            self._kept.add(name)

    def drop(self, name: bytes) -> None:
        """It need not stay any longer."""
        with self._lock:
            self._kept.discard(name)
            self._clear(name)

    def pin(self, name: bytes) -> bool:
        """Keeps it until it is unpinned as often, if it is there."""
        with self._lock:
            if there := self.has(name):
                self._pins[name] += 1
        return there

    def unpin(self, name: bytes) -> None:
        with self._lock:
            self._pins[name] -= 1
            self._clear(name)

    def _clear(self, name: bytes) -> None:
        if not self.has(name):
            del self._pins[name]
            self.path(name).unlink(missing_ok=True)

    def sweep(self, needed: Collection[bytes]) -> None:
        """Drops what is not needed, with all receptions that were begun; for a start, with what the last process left."""
        for name in [name for name in self._kept if name not in needed]:
            self.drop(name)
        for file in (*self.folder.glob("*.part"), *self.folder.glob("*.new")):
            file.unlink(missing_ok=True)

    def put(self, data: bytes | Iterable[memoryview]) -> Object:
        """Writes an object. Raises RunError where it can't be written."""
        digest, size = Naming(), 0
        with writing(self.folder), tempfile.NamedTemporaryFile(dir=self.folder, suffix=".new", delete=False) as file:
            try:
                for piece in (data,) if isinstance(data, bytes) else data:
                    digest.update(piece)
                    size += file.write(piece)
                file.flush()
            except BaseException:
                os.unlink(file.name)
                raise
        return self.adopt(Path(file.name), Object(hash=digest.digest(), size=size))

    def adopt(self, file: Path, known: Object | None = None, *, pinned: bool = False) -> Object:
        """Moves a finished file in, kept or `pinned`; `known` where its hash and size are known. Raises RunError where it can't."""
        with writing(file), file.open("rb+") as content:
            known = known or Object(hash=file_name(file), size=file.stat().st_size)
            if self.sync:
                os.fsync(content.fileno())
            with self._lock:
                file.replace(self.path(known.hash))
                if pinned:
                    self._pins[known.hash] += 1
                else:
                    self._kept.add(known.hash)
        return known

    def partial(self, wanted: Object, owner: str = "") -> "Partial":
        """The reception of an object, begun or gone on with; receptions of several owners don't touch each other."""
        return Partial(self, wanted, self._part(wanted.hash.hex(), owner))

    def forget(self, owner: str, name: bytes | None = None) -> None:
        """Throws an owner's unfinished receptions away, or that of one object."""
        for file in self.folder.glob(self._part(name.hex() if name else "*", owner).name):
            file.unlink(missing_ok=True)

    def _part(self, name: str, owner: str) -> Path:
        return self.folder / f"{name}.{owner}.part"


class Partial:
    """An object on its way: pieces are appended at the committed offset only, which is the file's length, also after a restart."""

    def __init__(self, store: Store, wanted: Object, file: Path) -> None:
        self.store, self.wanted, self.name = store, wanted, file
        with writing(file):
            self.file = os.open(file, os.O_RDWR | os.O_CREAT, 0o666)
            self.offset = os.fstat(self.file).st_size
            if self.offset > wanted.size:
                os.ftruncate(self.file, 0)
                self.offset = 0
            self.digest = begun(file, self.offset)

    @property
    def whole(self) -> bool:
        return self.offset == self.wanted.size

    def extend(self, pieces: Iterable[Cut]) -> None:
        """Several, one after the other; see `append`."""
        for piece in pieces:
            self.append(piece.offset, piece.data, piece.check)

    def append(self, offset: int, data: bytes | memoryview, check: int) -> int:
        """The committed offset after it. Raises BrokenMessage for a piece that doesn't fit, NoRoom or HostError for the disk."""
        if offset != self.offset:
            raise BrokenMessage(f"a piece for offset {offset}, where {self.offset} is next")
        if not data or offset + len(data) > self.wanted.size:
            raise BrokenMessage(f"a piece of {len(data)} bytes at offset {offset} of an object of {self.wanted.size}")
        if check_of(data) != check:
            raise BrokenMessage(f"a piece at offset {offset} that was damaged on its way")
        try:
            rest = memoryview(data)
            while rest:
                rest = rest[os.pwrite(self.file, rest, offset + len(data) - len(rest)) :]
        except OSError as error:
            os.ftruncate(self.file, offset)
            kind = NoRoom if error.errno in FULL else HostError
            raise kind(f"{self.store.folder}: {os.strerror(error.errno or 0)}") from error
        self.digest.update(data)
        self.offset += len(data)
        return self.offset

    def finish(self) -> None:
        """Hands the whole object to the store, pinned. Raises BrokenMessage, and begins anew, where its name says other bytes."""
        if self.digest.digest() != self.wanted.hash:
            self.discard()
            raise BrokenMessage(f"an object of {self.wanted.size} bytes that are not those its name says")
        self.store.adopt(self.name, self.wanted, pinned=True)

    def close(self) -> None:
        """What came stays."""
        if self.file >= 0:
            os.close(self.file)
            self.file = -1

    def discard(self) -> None:
        self.name.unlink(missing_ok=True)
        self.close()
