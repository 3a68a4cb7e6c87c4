"""A user's own function as a source of data."""

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from fedsim.data.arrays import Arrays, arrays_from, complaint, sampled
from fedsim.data.sources import Source
from fedsim.part import called


@dataclass(frozen=True)
class OwnSource(Source):
    """`make(**settings)` returns a mapping of arrays, named as in an .npz file: x, y, perhaps x_test, y_test, and ids by name.

    A parameter of `make` called `base` is given a folder, as a Path: the scenario's, or the one that is set, from there.
    """

    make: Callable[..., Mapping[str, Any]]
    settings: Mapping[str, Any] = field(default_factory=dict)

    def anchored(self, base: Path) -> "OwnSource":
        asks = "base" in inspect.signature(self.make).parameters
        return replace(self, settings={**self.settings, "base": str(self._folder(base))}) if asks else self

    def _folder(self, base: Path) -> Path:
        return (base / str(self.settings.get("base", ""))).resolve()

    def load(self, base: Path) -> Arrays:
        origin = f"{self.make.__module__}:{self.make.__qualname__}"
        settings = {name: value for name, value in self.settings.items() if name != "base"}
        try:
            found = called(self.make, settings, base=self._folder(base))
        except Exception as error:
            raise complaint(f"{origin} raised {type(error).__name__}: {error}") from error
        if not isinstance(found, Mapping):
            raise complaint(f"{origin} returned {type(found).__name__}, not a mapping of arrays x and y")
        return arrays_from({name: sampled(array, name, origin) for name, array in found.items()}, origin)
