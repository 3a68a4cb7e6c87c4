"""Who works at a server, for people: a worker as it stands at one moment."""

from dataclasses import replace
from typing import NamedTuple

from fedsim.transport.session import Carried, Session


class Present(NamedTuple):
    """`state`: `preparing` its task, `there`, `away` (its stream broke) or `lost`, and `why`; since then by the server's wall clock.

    `round_trip`, and `ahead`: how far its wall clock is ahead of the server's, in seconds; None where not known.
    """

    worker: bytes
    name: str
    address: str
    nodes: tuple[int, ...]
    version: str
    facts: bytes
    state: str
    since: float
    why: str
    round_trip: float | None
    ahead: float | None
    carried: Carried
    out: int  # jobs that it has
    came: int  # of its jobs, those whose reply waits to be taken in


def present(session: Session, lost: str = "") -> Present:
    """`lost`: why."""
    state = "lost" if lost else "preparing" if not session.joined else "there" if session.ready else "away"
    pulse, came = session.pulse, len(session.came)
    return Present(
        session.worker,
        session.name,
        session.address,
        session.nodes,
        session.hello.version,
        session.facts,
        state,
        session.since,
        lost,
        pulse.round_trip,
        pulse.wall_ahead,
        replace(session.carried),
        0 if lost else max(len(session.jobs) - came, 0),
        0 if lost else came,
    )
