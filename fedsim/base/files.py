"""Files that are written whole or not at all."""

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from fedsim.base.errors import HostError


@contextmanager
def writing(file: Path) -> Iterator[None]:
    """Raises RunError, in one line, where something can't be written."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        number = getattr(error, "errno", None)
        raise HostError(f"{file.name} can't be written: {os.strerror(number) if number else error}") from error


@contextmanager
def whole(file: Path) -> Iterator[Path]:
    """A draft to write to, which becomes the file: complete or not there at all. Raises RunError where it can't be written."""
    draft = file.with_suffix(".part")
    with writing(file):
        try:
            yield draft
            draft.replace(file)
        finally:
            draft.unlink(missing_ok=True)


def write_json(file: Path, content: dict[str, Any]) -> None:
    """Complete or not at all. Raises RunError where it can't be written."""
    with whole(file) as draft:
        draft.write_text(json.dumps(content, indent=1) + "\n")
