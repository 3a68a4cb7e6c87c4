"""`fedsim watch`: how a run stands and who works for it, in the terminal."""

from collections.abc import Callable, Iterable
from time import localtime, strftime, time
from typing import Any

from rich.console import Console

from fedsim.base.text import clock, count, duration, percent, size, three_digits
from fedsim.report.screen.standing import TOLD, Painted
from fedsim.run.folders import FINAL, RunFolder
from fedsim.transport.nodes import Nodes, parse

ENDS = (*FINAL, "killed")
EVERY = 1.0  # seconds between looks


def state_of(run: RunFolder) -> dict[str, Any]:
    """How a run's folder says that it stands; of a deployed run as its server last wrote. Raises FedsimError where it can't be read."""
    records = run.metrics
    last, before = records[-1] if records else {}, records[-2] if len(records) > 1 else {}
    known = dict(run.workers or {})
    state: dict[str, Any] = {
        "workers": [],
        "nodes": run.info.get("nodes", 0),
        "name": run.info.get("name"),
        "label": run.label,
        "at": time(),
        "began": 0.0,
        "full": False,
    }
    if not known or run.status in ENDS:
        wall = last.get("time/wall_seconds", 0.0) - before.get("time/wall_seconds", 0.0)
        moved = last.get("traffic/bytes", 0) - before.get("traffic/bytes", 0)
        told = {"round": "round", "seconds": "time/seconds", "accuracy": "test/accuracy", "loss": "test/loss", "bytes": "traffic/bytes"}
        known |= {name: last.get(metric) for name, metric in (told | {"updates": "work/updates"}).items()}
        known |= {"rate": moved / wall if wall > 0 and run.status not in ENDS else None}
        known |= {"doing": "", "about": ", ".join(str(run.info[name]) for name in ("device", "plan") if run.info.get(name))}
    return state | known | {"status": run.status, "reason": run.info.get("reason") or ""}


def lines(state: dict[str, Any]) -> list[str]:
    """The run, what is out, who is missing, and a row a worker."""
    workers = _current(state["workers"])
    return [head(state), *_doing(state), *_jobs(workers), *_missing(state, workers), *_table(state, workers)]


def head(state: dict[str, Any]) -> str:
    """`quickstart buffered seed 0  running  round 491  16:21/20:00  88.1 %  189 MB  3.2 MB/s`"""
    words = [f"{state['name']} {state['label']}", state["status"]]
    words += [f"round {count(state['round'])}"] if state["round"] is not None else []
    words += [clock(state["seconds"]) + (f"/{clock(state['end'])}" if state.get("end") else "")] if state["seconds"] else []
    if state["accuracy"] is not None:
        words.append(percent(state["accuracy"]))
    elif state["loss"] is not None:
        words.append(f"loss {state['loss']:.4g}")
    words += [size(state["bytes"])] if state["bytes"] else []
    rate = state.get("rate") if "rate" in state else sum(one["up_rate"] + one["down_rate"] for one in state["workers"])
    return "  ".join(words + ([f"{size(rate)}/s"] if rate else []))


def _doing(state: dict[str, Any]) -> list[str]:
    """What else there is to say of it in a few words."""
    said = [state["reason"] if state["status"] in ENDS else state["doing"], state.get("about", "")]
    said += ["no room: the server's disk is full, and replies wait at their workers"] if state["full"] else []
    return [f"  {text}" for text in said if text]


def _current(workers: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Without those that are gone and whose nodes others have."""
    there = _nodes(one for one in workers if one["state"] in ("there", "preparing"))
    return [one for one in workers if one["state"] in ("there", "preparing") or _nodes([one]).without(there)]


def _nodes(workers: Iterable[dict[str, Any]]) -> Nodes:
    return Nodes.of(part for one in workers if one["nodes"] for part in (parse(one["nodes"]) or Nodes()).ranges)


def _jobs(workers: list[dict[str, Any]]) -> list[str]:
    out, came, done, rate = (sum(one[name] for one in workers) for name in ("out", "came", "jobs", "jobs_rate"))
    return (
        [f"  jobs     {count(out)} out, {count(came)} back and waiting, {count(done)} done, {three_digits(rate)} a second"]
        if workers
        else []
    )


def missing(state: dict[str, Any]) -> list[tuple[Nodes, float, str]]:
    """Nodes without a worker that is there: which, since when by the server's clock, and why."""
    workers, found = state["workers"], list[tuple[Nodes, float, str]]()
    known = _nodes(one for one in workers if one["state"] in ("there", "preparing"))
    for one in sorted((one for one in workers if one["state"] in ("away", "lost")), key=lambda one: -one["since"]):
        if nodes := _nodes([one]).without(known):
            found.append((nodes, one["since"], one["why"] or "its connection broke"))
            known = Nodes.of((*known.ranges, *nodes.ranges))
    if never := Nodes.of([range(state["nodes"])]).without(known):
        found.append(
            (never, state["began"], "no worker has joined with it yet" if len(never) == 1 else "no worker has joined with them yet")
        )
    return found


def _missing(state: dict[str, Any], workers: list[dict[str, Any]]) -> list[str]:
    gone = missing(state) if "folder" in state and state["status"] not in ENDS else []
    return [f"  {'missing' if not at else '':8} {since(state, when)}, {nodes.named}: {why}" for at, (nodes, when, why) in enumerate(gone)]


def since(state: dict[str, Any], when: float) -> str:
    """`since 14:03:21 (42 s)`, by this machine's clock, whatever the server's says."""
    ago = max(state["at"] - when, 0.0)
    return f"since {strftime('%H:%M:%S', localtime(state.get('here', state['at']) - ago))} ({duration(float(round(ago)))})"


def _table(state: dict[str, Any], workers: list[dict[str, Any]]) -> list[str]:
    """A row a worker."""
    rows = [("worker", "nodes", "address", "device", "trip", "clock", "up", "down", "jobs/s")] if workers else []
    for one in workers:
        nodes, device = _nodes([one]).short, one.get("hardware") or one.get("device") or "-"
        row = one["name"][:20], nodes, one["address"], device
        if one["state"] in ("there", "preparing"):
            ahead, trip = one["ahead"], one["round_trip"]
            clocks = "-" if ahead is None else f"{'+' if ahead >= 0 else '-'}{duration(abs(ahead))}"
            work = three_digits(one["jobs_rate"]) if one["state"] == "there" else "preparing"
            rows.append((*row, "-" if trip is None else duration(trip), clocks, size(one["up"]), size(one["down"]), work))
        else:
            rows.append((*row, f"{one['state']} {since(state, one['since'])}", "", "", "", ""))
    widths = [max((len(row[at]) for row in rows if at != 4 or row[5]), default=0) for at in range(9)]
    return ["  " + "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]


class Screen(Painted):
    """A picture that is painted anew on a terminal; elsewhere a line each `TOLD` seconds, and one when somebody comes or goes."""

    def __init__(self, console: Console) -> None:
        super().__init__(console, transient=False)
        self.told, self.states, self.trouble = ("", 0.0), dict[str, str](), ""

    def show(self, state: dict[str, Any] | None, trouble: str = "") -> None:
        """`trouble`: why there is no newer state."""
        if self.paint("\n".join([*(lines(state) if state else []), *([trouble] if trouble else [])])):
            return
        if trouble and trouble != self.trouble:
            self._say(trouble)
        self.trouble = trouble
        if state and not trouble:
            self._told(state)

    def _told(self, state: dict[str, Any]) -> None:
        now, line, fresh = time(), head(state), not self.told[0]
        states = {_whose(one): one["state"] for one in state["workers"]}
        changed = [one for one in state["workers"] if not fresh and self.states.get(_whose(one)) != one["state"]]
        for text in (
            lines(state) if fresh else [f"  {one['name']}: {one['state']} {since(state, one['since'])} {one['why']}" for one in changed]
        ):
            self._say(text.rstrip())
        if not fresh and line != self.told[0] and (now - self.told[1] >= TOLD or state["status"] in ENDS):
            self._say(line)
            fresh = True
        self.states = states
        self.told = (line, now) if fresh else self.told

    def _say(self, text: str) -> None:
        self.console.print(text, soft_wrap=True, markup=False, highlight=False)


def follow(look: Callable[[], dict[str, Any]], screen: Screen, pause: Callable[[float], None]) -> dict[str, Any]:
    """Shows how it stands until it has ended; the end. Raises FedsimError where it can't be found out."""
    from fedsim.transport.watching import NoAnswer

    state, lost = None, 0.0
    while True:
        try:
            state, lost = look(), 0.0
            screen.show(state)
        except NoAnswer as no:
            if state is None:
                raise
            lost = lost or time()
            screen.show(state, f"no answer since {strftime('%H:%M:%S', localtime(lost))}: {no}")
        if state["status"] in ENDS:
            return state
        pause(EVERY)


def _whose(worker: dict[str, Any]) -> str:
    """Several workers may run on one machine, and bear its name."""
    return f"{worker['name']} {worker['nodes']}"
