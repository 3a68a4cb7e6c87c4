"""The errors that users see. None of them is shown with a traceback."""

import os
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from fedsim.base.address import hide


class FedsimError(Exception):
    """Something the user can mend; the text says what and where."""


class SettingError(FedsimError, ValueError):
    """A setting that can't be used, found after reading: `key` is its dotted key, so that the loader can name file, line and column."""

    def __init__(self, key: str, message: str) -> None:
        super().__init__(f"{key}: {message}")
        self.key, self.message = key, message


@dataclass
class Problem:
    """One mistake in a scenario: where it stands, what is wrong and the line with its width for the caret. Passwords are left out."""

    message: str
    file: str = ""
    line: int = 0
    column: int = 0
    text: str = ""
    width: int = 1

    def __post_init__(self) -> None:
        start = max(0, self.column - 1)
        before, meant = self.text[:start], self.text[start : start + self.width]
        self.column += len(hide(before)) - len(before)
        self.width += len(hide(meant)) - len(meant)
        self.message, self.text = hide(self.message), hide(self.text)


@dataclass
class ScenarioError(FedsimError):
    """All the mistakes of a scenario at once; nothing was started."""

    problems: list[Problem] = field(default_factory=list)

    def __str__(self) -> str:
        return "\n".join(_placed(p) for p in self.problems)


def _placed(problem: Problem) -> str:
    where = f"{problem.file}:{problem.line}:{problem.column}: " if problem.line else f"{problem.file}: "
    return (where if problem.file else "") + problem.message


@contextmanager
def placed(key: str) -> Iterator[None]:
    """Names the setting in a ValueError that comes out of the block."""
    try:
        yield
    except SettingError:
        raise
    except ValueError as error:
        raise SettingError(key, str(error)) from error


class TooFew(ValueError):
    """Fewer messages in a merge than a method can work with."""


class RunError(FedsimError):
    """A run that failed on the way (diverged, a user's code raised); what was written stays."""


class Diverged(RunError):
    """A run whose numbers are not finite any more: what it was built of, code of its own or not, makes the same ones again."""


class HostError(RunError):
    """What the machine did to a run (a full disk, a process that died): it need not come again where the run goes on."""


def comes_again(error: BaseException) -> bool:
    """Whether a run that goes on can only fail so again: the same work on the same bits."""
    cause = error.__cause__ or error
    return not isinstance(error, HostError) and not isinstance(cause, OSError | MemoryError) and "out of memory" not in str(cause)


def blame(error: BaseException) -> str:
    """An error of somebody's code in one line: its type, text, the file and line that raised it, and what was noted at it."""
    notes = "".join(f"; {note}" for note in getattr(error, "__notes__", []))
    place = line(error)
    where = "" if place.startswith("<") else f" ({place})"  # Python's own import machinery
    return f"{type(error).__name__}: {str(error) or 'no text'}{where}{notes}"


def line(error: BaseException) -> str:
    """`file.py:7`: the innermost line of the user's own code that an error came through."""
    frames = traceback.extract_tb(error.__traceback__)
    house = Path(__file__).parents[2]
    others = (str(house / "fedsim"), str(house / "strategies"), str(Path(os.__file__).parent), "<")
    own = [frame for frame in frames if "site-packages" not in frame.filename and not frame.filename.startswith(others)]
    where = (own or frames)[-1]
    return f"{Path(where.filename).name}:{where.lineno}"


class Unfit(FedsimError, ValueError):
    """A codec's settings have no meaning for a part of such a size."""


class BrokenMessage(FedsimError, ValueError):
    """Bytes that are no message: cut short, or changed on their way."""


class Finished(Exception):
    """The run's time is up, the clock's or the host's; raised out of a schedule's loop, and caught by `Federation.run`."""
