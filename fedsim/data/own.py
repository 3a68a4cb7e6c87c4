"""A user's own function as a source of data."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fedsim.data.arrays import Arrays, arrays_from, complaint, sampled
from fedsim.data.sources import Source


@dataclass(frozen=True)
class OwnSource(Source):
    """`make(**settings)` returns a mapping of arrays, named as in an .npz file: x, y, perhaps x_test, y_test, and ids by name."""

    make: Callable[..., Mapping[str, Any]]
    settings: Mapping[str, Any] = field(default_factory=dict)

    def load(self, base: Path) -> Arrays:
        origin = f"{self.make.__module__}:{self.make.__qualname__}"
        try:
            found = self.make(**self.settings)
        except Exception as error:
            raise complaint(f"{origin} raised {type(error).__name__}: {error}") from error
        if not isinstance(found, Mapping):
            raise complaint(f"{origin} returned {type(found).__name__}, not a mapping of arrays x and y")
        return arrays_from({name: sampled(array, name, origin) for name, array in found.items()}, origin)
