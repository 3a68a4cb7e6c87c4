"""A user's own function as a source of data."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fedsim.data.arrays import Arrays, arrays_from, complaint, sampled
from fedsim.data.sources import Source
from fedsim.errors import blame


@dataclass(frozen=True)
class OwnSource(Source):
    """`make(**settings)` returns a mapping of arrays, named as in an .npz file: x, y, perhaps x_test, y_test, and ids by name."""

    make: Callable[..., Mapping[str, Any]]
    settings: Mapping[str, Any] = field(default_factory=dict)

    def load(self, base: Path) -> Arrays:
        origin = f"{self.make.__module__}:{self.make.__qualname__}"
        try:
            found = self.make(**self.settings)
        except (Exception, SystemExit) as error:
            called = error.__traceback__ is not None and error.__traceback__.tb_next is None
            what = f"can't be called so: {error}" if called and isinstance(error, TypeError) else f"raised {blame(error)}"
            raise complaint(f"{origin} {what}") from error
        if not isinstance(found, Mapping) or not all(isinstance(name, str) for name in found):
            what = f"a mapping with the keys {', '.join(map(repr, found))}" if isinstance(found, Mapping) else type(found).__name__
            raise complaint(f"{origin} returned {what}, not a mapping of arrays x and y: {{'x': ..., 'y': ...}}")
        return arrays_from({name: sampled(array, name, origin) for name, array in found.items()}, origin)
