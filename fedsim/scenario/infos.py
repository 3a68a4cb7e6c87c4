"""What is told of parts and settings."""

from dataclasses import dataclass


@dataclass(frozen=True)
class SettingInfo:
    """One setting; `default` is its text, None where it must be written."""

    name: str
    type: str
    default: str | None
    help: str
    limits: str


@dataclass(frozen=True)
class PartInfo:
    """One part; `kind` is `server` or `peers` for strategies."""

    slot: str
    name: str
    help: str
    source: str
    kind: str
    settings: tuple[SettingInfo, ...]


@dataclass(frozen=True)
class Overview:
    """The parts of each slot, and every key outside parts."""

    slots: dict[str, tuple[PartInfo, ...]]
    keys: tuple[SettingInfo, ...]

    def describe(self, name: str) -> tuple[PartInfo, ...]:
        """The parts of a slot, or those of that name in any slot. Raises ValueError with the nearest name where there are none."""
        everything = [part for parts in self.slots.values() for part in parts]
        found = tuple(part for part in everything if part.name == name)
        if not found and name not in self.slots:
            from fedsim.scenario.leaves import nearest

            raise ValueError(f"nothing is called `{name}`{nearest(name, [*self.slots, *(part.name for part in everything)])}")
        return self.slots.get(name, found)
