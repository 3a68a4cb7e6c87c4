"""What `fedsim inspect` says about a run: how it ended, what it cost, and whether its events hold together."""

import shlex
from shutil import get_terminal_size
from textwrap import wrap

import numpy as np

from fedsim.base.crashes import last_words
from fedsim.base.text import count, counted, duration, energy, percent, short_percent, size
from fedsim.data.skew import label_skew, size_skew
from fedsim.report.checks import ARRIVAL, DROP, MERGE, MIX, Check, Log, check_events
from fedsim.report.columns import ACCURACIES, COSTS, accuracy_of
from fedsim.report.diagnosis import diagnose
from fedsim.report.figures.waits import in_words
from fedsim.run.crossing import FAR
from fedsim.run.folders import BEST, FINAL, Columns, RunFolder
from fedsim.run.streamed import MOST, events_of

WORKERS = 8  # that are shown
PEERS = {"worst node": "nodes/accuracy_worst", "averaged": "average/accuracy"}


def inspect_run(run: RunFolder) -> tuple[str, bool]:
    """The text, and whether all checks hold. Raises FedsimError where the run's files are missing or broken."""
    if run.status not in FINAL and not any((run.path / "events").glob("*.parquet")):
        return f"  {_ending(run)}\n  no events are written yet", True
    run.check_end()
    whole = (events := events_of(run)) <= MOST
    checks = check_events(run.columns, run.info, run.metrics) if whole else []
    left_out = f"checks  left out: {count(events)} events are more than the {count(MOST)} that are read at once"
    lines = [
        _ending(run),
        *_goes_on(run),
        *_short(_quality(run) + _target(run) + _best(run)),
        *(_short([_cost(run)]) if whole else []),
        *_short(_time(run)),
        *_deployed(run),
        *_short(_energy(run) if whole else []),
        *_short(_split(run) + _attackers(run)),
        *(_verdict(checks) if whole else [left_out]),
    ]
    return "\n".join(f"  {line}" for line in lines), all(check.ok for check in checks)


def _ending(run: RunFolder) -> str:
    status, reason = run.status, run.info.get("reason") if run.status in FINAL else ""
    if status == "killed":
        again = run.info["command"] if "flower" in run.info else f"fedsim resume {shlex.quote(str(run.path))}"
        reason = f"{last_words(run.path / 'log.txt') or 'its process is gone'}; go on with: {again}"
    last = run.metrics[-1] if run.metrics else {}
    parts = [f"{status} ({reason})" if reason else status]
    parts += [f"round {count(last.get('round', 0))}", duration(last.get("time/seconds", 0.0))]
    cut = last.get("work/dropped", 0)
    parts.append(f"{count(last.get('work/updates', 0))} updates" + (f", {count(cut)} cut" if cut else ""))
    return "  ".join(parts)


def _short(lines: list[str]) -> list[str]:
    """Lines that fit."""
    return [part for line in lines for part in wrap(line, _room(), subsequent_indent=" " * 8)]


def _room() -> int:
    """Columns of a line, after its indent: those of the terminal, at most 78."""
    return max(30, min(80, get_terminal_size((80, 24)).columns) - 2)


def _quality(run: RunFolder) -> list[str]:
    """Accuracy, or loss where there is none, in the end, and at its best where that was another evaluation; of peers the mean."""
    name = accuracy_of([run]) or "test/loss"
    values, write = run.column(name), percent if name in ACCURACIES else lambda loss: f"{loss:.4g}"
    if not np.isfinite(values).any():
        return []
    best = int(np.nanargmax(values) if name in ACCURACIES else np.nanargmin(values))
    title = "node mean" if run.info.get("peers") and name == "test/accuracy" else ACCURACIES.get(name, "loss")
    words = f"{title}  {write(values[-1]) if np.isfinite(values[-1]) else '-'} in the end"
    record = run.metrics[best]
    others = [(word, value) for word, key in PEERS.items() if (value := run.metrics[-1].get(key)) is not None]
    when = duration(record["time/seconds"]) if record.get("time/seconds") else f"round {count(record['round'])}"
    words += f"; best {write(values[best])} at {when}" if best < len(values) - 1 else ""
    return [words + "".join(f"; {word} {percent(value)}" for word, value in others if run.info.get("peers"))]


def _target(run: RunFolder) -> list[str]:
    """What had been spent where accuracy crossed the target."""
    target, hit = run.info.get("target"), run.info.get("target_reached")
    if target is None:
        return []
    if not hit:
        return [f"target  {short_percent(target)} not reached"]
    spent = [f"{COSTS[name][1](hit[name])}{' updates' if name == 'updates' else ''}" for name in COSTS if name in hit and name != "round"]
    sparse = f"; the evaluations around lie {100 * hit['apart']:.0f} % of that apart" if hit.get("apart", 0) > FAR else ""
    return [f"target  {short_percent(target)} crossed at round {count(hit['round'])}, after {', '.join(spent)}{sparse}"]


def _best(run: RunFolder) -> list[str]:
    """The evaluation whose model is kept beside the last one."""
    best = run.info.get("best") or {}
    if best.get("value") is None:
        return []
    when = f"round {count(best['round'])}" + (f", {duration(best['seconds'])}" if best.get("seconds") else "")
    return [f"kept  the model of {when} in {BEST}, best by {best['metric']} ({best['value']:.4g})"]


def _energy(run: RunFolder) -> list[str]:
    """Joules of all jobs, and of those that were dropped."""
    if "energy" not in run.columns:
        return []
    joules, dropped = run.columns["energy"], run.columns["kind"] == DROP
    total = float(joules.sum())
    return [f"energy  {energy(total)}" + (f", {100 * float(joules[dropped].sum()) / total:.0f} % of it for dropped jobs" if total else "")]


def _goes_on(run: RunFolder) -> list[str]:
    """How a run that was cut short goes on, if it can."""
    if run.info.get("status") not in ("failed", "stopped"):
        return []
    if "flower" in run.info:
        return [f"begins anew with  {run.info.get('command')}"]
    if not run.info.get("again"):
        return [f"goes on with  fedsim resume {shlex.quote(str(run.path))}"]
    mended = "; if its own code is mended, with `fedsim resume` and `--code new`" if run.info.get("code") else ""
    return [f"would fail again{mended}"]


def _cost(run: RunFolder) -> str:
    columns = run.columns
    mixed = columns["kind"] == MIX
    up, down = (int(columns[name][~mixed].sum()) for name in ("bytes_up", "bytes_down"))
    out, back = (int(columns[name][mixed].sum()) for name in ("bytes_up", "bytes_down"))  # `back`: from above to edge servers
    missed = columns["staleness"][(columns["kind"] == MERGE) & (columns["job"] >= 0)]
    server = f"  up {size(up)}  down {size(down)}" if up or down or not out else ""
    across = f"  edges up {size(out)}  down {size(back)}" if back else f"  across {size(out)}" if out else ""
    parts = [f"bytes{server}{across}"]
    if len(missed):
        parts.append(f" staleness mean {missed.mean():.1f}  max {missed.max()}")
    return "  ".join([*parts, f" wasted work {100 * wasted_work(columns):.0f} %"])


def _time(run: RunFolder) -> list[str]:
    """Where clients' time went."""
    found = diagnose(run)
    return in_words(found) if found else []


def _deployed(run: RunFolder) -> list[str]:
    """What went over the wire, resends and all, and who worked."""
    found = run.info.get("deployed")
    if not found:
        return []
    lines = [f"carried  up {size(found['carried_up'])}  down {size(found['carried_down'])}"]
    for one in found["workers"][:WORKERS]:
        device = one.get("hardware") or one.get("device") or "-"
        carried = f"up {size(one['up'])}  down {size(one['down'])}"
        lines.append(f"worker   {one['name']}  nodes {one['nodes']}  {device}  {one.get('plan')}  {carried}  {counted(one['jobs'], 'job')}")
    more = len(found["workers"]) - WORKERS
    return lines + ([f"         and {more} more in run.json"] if more > 0 else [])


def _split(run: RunFolder) -> list[str]:
    """How unlike the clients' data were as split, where the run kept its counts of labels."""
    counts = run.label_counts
    if counts is None:
        return []
    return [f"sizes  {size_skew(counts.sum(1))}", f"labels  {label_skew(counts)}"]


def _attackers(run: RunFolder) -> list[str]:
    """How many nodes lied."""
    found = run.info.get("attackers")
    return [f"attackers  {found['name']} on {count(found['count'])} of {count(run.info['nodes'])} nodes"] if found else []


def wasted_work(columns: Columns) -> float:
    """Share of the work of ended jobs that was done for dropped ones: simulated time up to the drop, or steps where work takes no time."""
    log = Log(columns)
    rows = log.rows(ARRIVAL, DROP)
    sent, known = log.dispatches(rows)
    rows, sent = rows[known], sent[known]
    down, work = (columns[name][sent] + columns[name][rows] for name in ("down", "work"))  # one of them tells
    spent = np.clip(columns["time"][rows] - columns["time"][sent] - down, 0, work) if work.any() else columns["steps"][sent]
    total = float(spent.sum())
    return float(spent[columns["kind"][rows] == DROP].sum()) / total if total else 0.0


def _verdict(checks: list[Check]) -> list[str]:
    """Lines that fit; each failed check has one of its own."""
    words = [f"{check.name} {'ok' if check.ok else 'FAILED'}" for check in checks]
    words[-1] += f" ({sum(check.ok for check in checks)} of {len(checks)})"
    lines = ["checks"]
    for word in words:
        if len(lines[-1]) + len(word) > _room() - 4:
            lines.append("      ")
        lines[-1] += f"  {word}"
    return lines + [f"{check.name}: {check.detail}" for check in checks if not check.ok]
