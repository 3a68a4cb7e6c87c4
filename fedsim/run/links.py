"""Links in a run's folder. Whoever made the folder could have us overwrite, or send to a tracking server, what a link in it leads to."""

import os
from pathlib import Path

from fedsim.base.errors import FedsimError


def keep_inside(folder: Path) -> None:
    """Raises FedsimError where the folder holds a link that leads out of it, or what would wait for somebody else. Nothing is followed."""
    home = folder.resolve()
    for place, folders, files in os.walk(folder):
        for name in (*folders, *files):
            one = Path(place, name)
            if one.is_symlink() and not _leads_into(one, home):
                raise FedsimError(f"{one} is a link out of the run's folder; nothing is written or sent through it: remove it first")
            if one.exists() and not (one.is_file() or one.is_dir()):  # one that is being replaced is gone meanwhile
                raise FedsimError(f"{one} can't be read: it is no plain file")


def _leads_into(link: Path, home: Path) -> bool:
    try:
        return link.resolve().is_relative_to(home)
    except (OSError, RuntimeError):  # links in a circle
        return False
