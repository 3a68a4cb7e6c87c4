"""A user's own function as a source of data."""

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from fedsim.base.errors import blame
from fedsim.data.arrays import Arrays, arrays_from, complaint, sampled
from fedsim.data.source import Source
from fedsim.settings.part import called


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
        except (Exception, SystemExit) as error:
            inner = error.__traceback__.tb_next if error.__traceback__ else None
            unfit = inner is not None and inner.tb_next is None  # it ends where `called` calls
            what = f"can't be called so: {error}" if unfit and isinstance(error, TypeError) else f"raised {blame(error)}"
            raise complaint(f"{origin} {what}") from error
        if not isinstance(found, Mapping) or not all(isinstance(name, str) for name in found):
            what = f"a mapping with the keys {', '.join(map(repr, found))}" if isinstance(found, Mapping) else type(found).__name__
            raise complaint(f"{origin} returned {what}, not a mapping of arrays x and y: {{'x': ..., 'y': ...}}")
        return arrays_from({name: sampled(array, name, origin) for name, array in found.items()}, origin)
