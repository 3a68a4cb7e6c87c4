"""Run folders for tests, written by the format of real runs from a small simulation of arrivals."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as parquet

COLUMNS = {
    "time": pa.int64(),
    "kind": pa.dictionary(pa.int8(), pa.string()),
    "node": pa.int32(),
    "job": pa.int64(),
    "version": pa.int64(),
    "staleness": pa.int32(),
    "bytes_down": pa.int64(),
    "bytes_up": pa.int64(),
    "down": pa.int64(),
    "work": pa.int64(),
    "up": pa.int64(),
    "steps": pa.int32(),
}
TICKS = 1000
MODEL = 50_000  # bytes
Row = dict[str, Any]


def row(time: int, kind: str, node: int = -1, job: int = -1, version: int = 0, **rest: int) -> Row:
    empty = dict.fromkeys(COLUMNS, 0) | {"staleness": -1}
    return empty | {"time": time, "kind": kind, "node": node, "job": job, "version": version} | rest


def simulate(work: Sequence[int], size: int, end: int, every: int, drop: int = 0) -> tuple[list[Row], list[Row]]:
    """All nodes always at work for `work` [nodes] ticks plus 20 each way; a merge whenever `size` have arrived.

    Every `drop`-th job is lost. Gives (event rows, records of evaluations); accuracy rises with the merges.
    """
    rows: list[Row] = []
    records: list[Row] = []
    flying: list[tuple[int, int, int, int]] = []  # (arrival, node, job, version)
    version = serial = dropped = merged = up = down = 0
    buffer: list[tuple[int, int, int]] = []

    def send(time: int, node: int) -> None:
        nonlocal serial, down
        parts = {"down": 20, "work": work[node], "up": 20, "steps": 5, "bytes_down": MODEL}
        rows.append(row(time, "dispatch", node, serial, version, **parts))
        flying.append((time + work[node] + 40, node, serial, version))
        serial, down = serial + 1, down + MODEL

    def evaluate(time: int) -> None:
        rows.append(row(time, "evaluate", version=version))
        stale = [r["staleness"] for r in rows if r["kind"] == "merge"]
        accuracy = 0.92 - 0.82 * float(np.exp(-merged / 150))
        records.append(
            {"round": version, "version": version, "time/seconds": time / TICKS, "time/wall_seconds": 0.01 * serial + 0.001 * len(records)}
            | {"traffic/bytes_up": up, "traffic/bytes_down": down, "traffic/bytes_cross": 0, "traffic/bytes": up + down}
            | {"work/updates": merged, "work/steps": 5 * merged, "work/dropped": dropped}
            | {"staleness/mean": float(np.mean(stale)) if stale else 0.0, "test/accuracy": accuracy, "test/loss": 2.6 * (0.95 - accuracy)}
            | {"clients/accuracy_mean": accuracy, "clients/accuracy_worst_10": accuracy * 0.85}
        )

    for node in range(len(work)):
        send(0, node)
    due = 0
    while due <= end:
        flying.sort()
        time, node, job, seen = flying[0]
        if time > due:
            evaluate(due)
            due += every
            continue
        flying.pop(0)
        if drop and job % drop == drop - 1:
            rows.append(row(time - 20, "drop", node, job, seen))
            rows.sort(key=lambda r: r["time"])
            dropped += 1
        else:
            rows.append(row(time, "arrival", node, job, seen, bytes_up=MODEL))
            up += MODEL
            buffer.append((node, job, seen))
        if len(buffer) == size:
            version += 1
            rows += [row(time, "merge", n, j, version, staleness=version - 1 - v) for n, j, v in buffer]
            merged, buffer = merged + size, []
        send(time, node)
    return rows, records


def table(rows: Sequence[Mapping[str, Any]]) -> Any:
    schema = pa.schema(list(COLUMNS.items()), metadata={b"fedsim": json.dumps({"ticks_per_second": TICKS}).encode()})
    return pa.Table.from_pylist(list(rows), schema=schema)


def write_run(folder: Path, rows: Sequence[Row], records: Sequence[Row], scenario: str = "seed: 0\n", **info: Any) -> Path:
    """One run's folder, its events in two segments."""
    (folder / "events").mkdir(parents=True)
    half = len(rows) // 2
    for place, part in enumerate((rows[:half], rows[half:])):
        parquet.write_table(table(part), folder / "events" / f"{place:06}.parquet")
    (folder / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    (folder / "scenario.yaml").write_text(scenario)
    (folder / "model.safetensors").write_bytes(b"model")
    known = {
        "name": "demo",
        "label": "seed 0",
        "variant": "",
        "seed": 0,
        "changed": {},
        "status": "finished",
        "reason": "60 s",
        "hash": "3f9a1c" * 8,
    }
    known |= {"created": "2026-11-21T14:25:30+00:00", "version": "0.1.0", "model": "9be277d0" * 8, "wall_seconds": 7.0, "target": None}
    known |= {"target_reached": None, "final": records[-1] if records else None, "concurrency": None}
    (folder / "run.json").write_text(json.dumps(known | info))
    return folder


def write_labels(folder: Path, nodes: int, classes: int, alpha: float) -> None:
    draw = np.random.default_rng(1)
    shares = draw.dirichlet([alpha] * classes, nodes)
    sizes = np.exp(draw.normal(3.5, 0.6, nodes))
    np.savez(folder / "labels.npz", counts=np.rint(shares * sizes[:, None]).astype(np.int64))


def write_sweep(upper: Path, runs: Sequence[str], name: str = "demo") -> Path:
    """The upper folder of runs already written, and the link `latest` beside it."""
    content = {"name": name, "scenario": f"{name}.yaml", "created": "2026-11-21T14:25:30+00:00", "runs": list(runs)}
    (upper / "sweep.json").write_text(json.dumps(content))
    link = upper.parent / "latest"
    link.unlink(missing_ok=True)
    link.symlink_to(upper.name)
    return upper
