"""What the runs of a sweep have in common and how far they differ: the end of `fedsim validate`."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, NamedTuple

from fedsim.base.text import count, counted, duration, size

if TYPE_CHECKING:
    from fedsim.run.runner import Run


class Facts(NamedTuple):
    """Of one run that was built: seconds and bytes are of a job, the least and the most."""

    name: str
    label: str
    seed: int
    hash: str
    nodes: int
    parameters: int
    seconds: tuple[float, float]
    bytes: float


def facts(run: "Run") -> Facts:
    from fedsim.federation.field import least_and_most

    fed, seconds = run.fed, run.fed.durations() / run.fed.nature.per_second
    sent = (
        float(fed.flight.peer_bytes * fed.flight.exchanges[0].max())
        if fed.schedule.peers
        else float(least_and_most(fed.down_bytes + fed.flight.up_bytes)[1])
    )
    about = (run.scenario.name, run.loaded.label, run.loaded.seed, run.loaded.hash, fed.nodes, fed.task.layout.size)
    return Facts(*about, (float(seconds.min()), float(seconds.max())), sent)


def overview(found: Sequence[Facts]) -> str:
    """A few lines: how many runs, between what and what they differ, and which ask the same question twice."""
    seeds = {one.seed for one in found}
    lines = [f"{found[0].name}  {counted(len(found), 'run')} of {counted(len(seeds), 'seed')}, all valid"]
    lines.append(f"  nodes     {_between([one.nodes for one in found], count)}")
    lines.append(f"  model     {_between([one.parameters for one in found], count)} parameters")
    jobs = _between([second for one in found for second in one.seconds], duration)
    lines.append(f"  a job     {jobs} simulated; {_between([one.bytes for one in found], size)} sent and heard at most")
    first: dict[tuple[str, int], str] = {}
    for one in found:
        same = first.setdefault((one.hash, one.seed), one.label)
        if same != one.label:
            lines.append(f"  the same  {one.label} asks what {same} asks")
    return "\n".join(lines)


def _between(values: Sequence[float], write: Callable[[float], str]) -> str:
    least, most = write(min(values)), write(max(values))
    return least if least == most else f"{least} to {most}"
