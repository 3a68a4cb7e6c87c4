"""`fedsim list`: what a scenario can name, as text."""

from collections.abc import Sequence

from fedsim.scenario.catalog import PartInfo, SettingInfo, describe, keys, slots


def listing(what: str) -> str:
    """All slots for "", all keys for `keys`, the parts of a slot, or one part with its settings. Raises ValueError for an unknown name."""
    if not what:
        rows = [(slot, ", ".join(part.name for part in describe(slot))) for slot in slots()]
        return _table(rows) + "\nmore: fedsim list SLOT, fedsim list NAME, fedsim list keys"
    if what == "keys":
        return _table([(key.name, _default(key), key.help) for key in keys()])
    parts = describe(what)
    if what in slots():
        return _table([_line(part) for part in parts])
    return "\n\n".join(_whole(part) for part in parts)


def _line(part: PartInfo) -> tuple[str, ...]:
    settings = " ".join(f"{one.name}={one.default}" if one.default is not None else one.name for one in part.settings)
    return (part.name, *([part.kind] if part.kind else []), settings, part.source)


def _whole(part: PartInfo) -> str:
    head = f"{part.name} ({part.slot})" + (f"  {part.source}" if part.source else "")
    rows = [(f"  {one.name}", one.type + (f", {one.limits}" if one.limits else ""), _default(one), one.help) for one in part.settings]
    return "\n".join([head, f"  {part.help}", *([_table(rows)] if rows else ["  no settings"])])


def _default(one: SettingInfo) -> str:
    return "needed" if one.default is None else one.default


def _table(rows: Sequence[tuple[str, ...]]) -> str:
    widths = [min(36, max(len(cell) for cell in column)) for column in zip(*rows, strict=True)]
    return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows)
