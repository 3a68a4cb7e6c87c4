"""Taking turns: one process at a time does something, the others wait."""

import errno
import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from fedsim.base.errors import FedsimError

PAUSE = 0.05  # seconds between two looks
UNKNOWN = (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS)  # file systems without locks: there nobody waits


class BusyError(FedsimError):
    """Somebody else holds what is wanted."""


@contextmanager
def turn(file: Path, patience: float) -> Iterator[None]:
    """Holds the lock file; it is free again when the process ends, however it does, and stays as an empty file.

    Raises BusyError where another one holds it for longer than `patience` seconds, OSError where it can't be made.
    """
    held = os.open(file, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        _wait(held, file, time.monotonic() + patience)
        with suppress(OSError):  # on a full disk the lock holds too
            os.truncate(held, 0)
            os.write(held, f"process {os.getpid()}".encode())
        yield
        with suppress(OSError):
            os.truncate(held, 0)
    finally:
        os.close(held)


def _wait(held: int, file: Path, end: float) -> None:
    while True:
        try:
            return fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > end:
                who = os.pread(held, 100, 0).decode(errors="replace") or "another process"
                raise BusyError(f"{who} is at work there (it holds {file})") from None
            time.sleep(PAUSE)
        except OSError as error:
            if error.errno in UNKNOWN:
                return None
            raise
