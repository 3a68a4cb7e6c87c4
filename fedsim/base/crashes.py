"""Processes that die of a signal: what their end means, and where they leave their last words."""

import faulthandler
import fcntl
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import IO

_FAULTS = ("SIGSEGV", "SIGBUS", "SIGILL", "SIGFPE", "SIGABRT")
_FATAL = "Fatal Python error: "


def ending(code: int | None) -> str:
    """How a process with this exit code ended, and what helps: `was ended by SIGKILL, as ...`; None: it is not known."""
    if code is None:
        return "ended unexpectedly"
    if code >= 0:
        return f"ended unexpectedly with exit code {code}"
    name = signal.Signals(-code).name if -code in {*signal.Signals} else f"signal {-code}"
    if name in _FAULTS:
        return f"was ended by {name}, a fault in compiled code (PyTorch's or a package's); ONEDNN_MAX_CPU_ISA=SSE41 avoids those of oneDNN"
    return f"was ended by {name}" + (", as systems do where memory runs out" if name == "SIGKILL" else "")


def last_words_to(file: Path) -> Callable[[], None]:
    """A fault of this process, or of one it forks, is written at the end of the file; what is returned ends that."""
    before, place = faulthandler.is_enabled(), os.open(file, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    faulthandler.enable(place)

    def done() -> None:
        _usual(before)
        os.close(place)

    return done


def _usual(wanted: bool) -> None:
    shown: IO[str] | None = sys.__stderr__
    if wanted and shown is not None:
        faulthandler.enable(shown)
    else:
        faulthandler.disable()


def last_words(file: Path) -> str:
    """`Segmentation fault in conv.py:553 (forward)`: the last fault that a process wrote there; "" where there is none."""
    if not file.exists():
        return ""
    _, fatal, rest = file.read_text(errors="replace").rpartition(_FATAL)
    lines = rest.splitlines()
    frames = [line.split('"') for line in lines if line.startswith('  File "')]
    own = [frame for frame in frames if "site-packages" not in frame[1]]
    where = "".join(f" in {Path(name).name}:{place.split()[2]} ({place.split()[-1]})" for _, name, place in (own or frames)[:1])
    return f"{lines[0]}{where}" if fatal else ""


def held(folder: Path) -> bool:
    """Is a process at work on the run's folder?"""
    try:
        with (folder / "lock").open() as file:
            if file.read(100) == f"process {os.getpid()}":  # asking further would give up the lock
                return True
            fcntl.lockf(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except OSError:
        return True
    return False
