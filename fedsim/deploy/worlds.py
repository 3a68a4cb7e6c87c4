"""A measured world as a file that scenarios extend."""

from collections.abc import Callable, Iterator
from fractions import Fraction
from math import floor, log10

from fedsim.base.text import duration, size
from fedsim.deploy.measuring import Profile
from fedsim.scenario import leaves
from fedsim.settings.values import Rate, Time
from fedsim.transport.nodes import Nodes
from fedsim.world import Compute, Network, World

DIGITS = 4


def rounded(value: float) -> Fraction:
    """To some digits that count, and no finer than 1 ns."""
    places = DIGITS - 1 - floor(log10(value)) if value > 0 else 0
    return Fraction(round(Fraction(value) * Fraction(10) ** min(places, 9))) / Fraction(10) ** min(places, 9)


def time(seconds: float) -> str:
    return leaves.write(rounded(seconds), Time)


def rate(seconds_a_byte: float) -> str:
    """`null`, without limit, where a byte takes no time."""
    return leaves.write(max(rounded(1 / seconds_a_byte), Fraction(1)), Rate) if seconds_a_byte > 0 else "null"


def text(profile: Profile, source: str) -> str:
    """The file's lines; of the world that the run's scenario had, only attackers are left."""
    return (
        "\n".join([f"# measured by `fedsim profile` in {source}", *(f"# {note}" for note in profile.notes), "world:", *_world(profile)])
        + "\n"
    )


def table(profile: Profile) -> Iterator[str]:
    """What was measured, a line a machine, in 80 columns."""
    yield "nodes         machine       stacks  up         down       latency  a sample  off"
    for one in profile.machines:
        up, down = (f"{size(1 / slope)}/s" if slope > 0 else "no limit" for slope in (one.up, one.down))
        yield (
            f"{one.nodes.short:12.12}  {one.name:12.12}  {one.stacks:6,}  {up:9}  {down:9}  {duration(one.latency):7}  "
            f"{duration(one.sample):7}  {100 * one.off:3.0f}%"
        )
    yield f"the server takes {duration(profile.merge)} a merge; off: median error of the fitted work"
    yield from profile.notes


def _world(found: Profile) -> Iterator[str]:
    old = found.loaded.scenario.world if found.loaded else World()
    each = _each(found)
    yield "  hosts:"
    yield f"    nodes: [{', '.join(_machine(one.nodes) for one in found.machines)}]"
    yield f"    stack: {each('stack', time)}"
    yield f"    merge: {time(found.merge)}"
    yield "  compute:"
    for name in ("job", "step", "sample"):
        yield f"    {name}: {each(name, time)}"
    yield from _forgotten(old.compute, Compute(), ("trace", "jitter", "bursts"), "    ")
    yield "  network:"
    for name in ("up", "down"):
        yield f"    {name}: {each(name, rate)}"
    yield f"    latency: {each('latency', time)}"
    yield from _forgotten(old.network, Network(), ("loss", "packet", "server_up", "server_down"), "    ")
    yield from _forgotten(old, World(), ("availability", "faults", "energy"), "  ")


def _forgotten(old: object, new: object, names: tuple[str, ...], indent: str) -> Iterator[str]:
    yield from (f"{indent}{name}: null" for name in names if getattr(old, name) != getattr(new, name))


def _machine(nodes: Nodes) -> str:
    ranges = str(nodes).split(",")
    return ranges[0] if len(ranges) == 1 else f"[{', '.join(ranges)}]"


def _each(found: Profile) -> Callable[[str, Callable[[float], str]], str]:
    """What a number of the machines is, as one value where all have the same, or by range of nodes."""

    def value(name: str, said: Callable[[float], str]) -> str:
        texts = [said(getattr(one, name)) for one in found.machines]
        if len(set(texts)) == 1:
            return texts[0]
        pairs = sorted(
            (part.start, Nodes((part,)), text) for one, text in zip(found.machines, texts, strict=True) for part in one.nodes.ranges
        )
        return f"{{{', '.join(f'{nodes}: {text}' for _, nodes, text in pairs)}}}"

    return value
