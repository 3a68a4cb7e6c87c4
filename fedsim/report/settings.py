"""In what settings runs differ, and whether they are of one task."""

from collections.abc import Mapping, Sequence

from fedsim.run.folders import RunFolder

Settings = Mapping[str, str]
ASIDE = ("name", "about", "seed", "track", "checkpoint", "deploy", "engine", "smoke", "sweep")  # what no result depends on, but the seed
TASK = ("task.data", "task.partition", "task.shift", "groups")


class Reader:
    """Reads runs' settings. Runs of one sweep and variant differ in their seed alone: one of them is read for all."""

    def __init__(self) -> None:
        self.known: dict[object, Settings] = {}

    def __call__(self, run: RunFolder, variant: str) -> Settings:
        """By dotted key, a part's name at the part's own key. Raises FedsimError where scenario.yaml is broken."""
        alone = run.info.get("resumed") or not (run.path.parent / "sweep.json").exists()
        key = run.path if alone else (run.path.parent, variant)
        if key not in self.known:
            found = ((name.removesuffix(".name"), text) for name, text in run.parameters.items())
            self.known[key] = {name: text for name, text in found if name.partition(".")[0] not in ASIDE and name != "task.data.base"}
        return self.known[key]


def differing(settings: Sequence[Settings]) -> list[str]:
    """The keys, in order, that differ where they are set.

    A part's own settings are missing where another part stands in its place: the part's name tells that.
    """
    keys = dict.fromkeys(key for one in settings for key in one)
    found = list[str]()
    for key in keys:
        values = {one.get(key) for one in settings}
        if len(values - {None}) > 1 or (None in values and len(values) > 1 and not _below(key, found)):
            found.append(key)
    return found


def _below(key: str, keys: Sequence[str]) -> bool:
    return any(key.startswith(f"{above}.") for above in keys)


def task_of(settings: Settings) -> dict[str, str]:
    """What says on which data, shared out how, a run learns."""
    return {key: text for key, text in settings.items() if any(f"{key}.".startswith(f"{one}.") for one in TASK)}


def only(settings: Settings, keys: Sequence[str]) -> str:
    """`alpha 0.1, lr 0.3`"""
    return ", ".join(f"{short(key)} {settings[key]}" for key in keys if key in settings)


def short(key: str) -> str:
    """A dotted key's last word."""
    return key.rsplit(".", 1)[-1]


def named(text: str, known: Sequence[str]) -> str:
    """The dotted key that is meant by itself or by its last words. Raises ValueError where that is none, or several."""
    near = [key for key in known if key == text] or [key for key in known if key.endswith(f".{text}")]
    if len(near) == 1:
        return near[0]
    if near:
        raise ValueError(f"`{text}` is one of {', '.join(near)}")
    from fedsim.scenario.leaves import nearest

    raise ValueError(f"unknown key `{text}`{nearest(text, [*known, *map(short, known)])}")
