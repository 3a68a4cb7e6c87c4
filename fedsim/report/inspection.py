"""What `fedsim inspect` says about a run: how it ended, what it cost, and whether its events hold together."""

import shlex

import numpy as np

from fedsim.data.statistics import label_skew, size_skew
from fedsim.report.checks import ARRIVAL, DROP, MERGE, MIX, Check, Log, check_events
from fedsim.report.folders import FINAL, Columns, RunFolder
from fedsim.report.text import count, duration, size


def inspect_run(run: RunFolder) -> tuple[str, bool]:
    """The text, and whether all checks hold. Raises FedsimError where the run's files are missing or broken."""
    run.check_end()
    checks = check_events(run.columns, run.info, run.metrics)
    lines = [_ending(run), *_goes_on(run), _cost(run), *_split(run), *_attackers(run), *_verdict(checks)]
    return "\n".join(f"  {line}" for line in lines), all(check.ok for check in checks)


def _ending(run: RunFolder) -> str:
    status, reason = run.info.get("status", "running"), run.info.get("reason")
    last = run.metrics[-1] if run.metrics else {}
    parts = [f"{status} ({reason})" if reason and status in FINAL else f"{status}"]
    parts += [f"round {count(last.get('round', 0))}", duration(last.get("time/seconds", 0.0))]
    cut = last.get("work/dropped", 0)
    parts.append(f"{count(last.get('work/updates', 0))} updates" + (f", {count(cut)} cut" if cut else ""))
    return "  ".join(parts)


def _goes_on(run: RunFolder) -> list[str]:
    """How a run that was cut short goes on, if it can."""
    if run.info.get("status") not in ("failed", "stopped"):
        return []
    if not run.info.get("again"):
        return [f"goes on with  fedsim resume {shlex.quote(str(run.path))}"]
    mended = "; if its own code is mended, with `fedsim resume` and `--code new`" if run.info.get("code") else ""
    return [f"would fail again{mended}"]


def _cost(run: RunFolder) -> str:
    columns = run.columns
    mixed = columns["kind"] == MIX
    up, down = (int(columns[name][~mixed].sum()) for name in ("bytes_up", "bytes_down"))
    cross = int(columns["bytes_up"][mixed].sum() + columns["bytes_down"][mixed].sum())
    missed = columns["staleness"][(columns["kind"] == MERGE) & (columns["job"] >= 0)]
    server = f"  up {size(up)}  down {size(down)}" if up or down or not cross else ""
    parts = [f"bytes{server}" + (f"  across {size(cross)}" if cross else "")]
    if len(missed):
        parts.append(f" staleness mean {missed.mean():.1f}  max {missed.max()}")
    return "  ".join([*parts, f" wasted work {100 * wasted_work(columns):.0f} %"])


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
    """At most 78 columns a line; each failed check has a line of its own."""
    words = [f"{check.name} {'ok' if check.ok else 'FAILED'}" for check in checks]
    words[-1] += f" ({sum(check.ok for check in checks)} of {len(checks)})"
    lines = ["checks"]
    for word in words:
        if len(lines[-1]) + len(word) > 74:
            lines.append("      ")
        lines[-1] += f"  {word}"
    return lines + [f"{check.name}: {check.detail}" for check in checks if not check.ok]
