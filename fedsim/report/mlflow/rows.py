"""Metrics into a store that is a file of SQLite, as rows and not one by one as objects: MLflow's own way takes many times as long."""

import math
import sqlite3
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

COLUMNS = ("key", "value", "timestamp", "step", "is_nan", "run_uuid")
TABLES = ("metrics", "latest_metrics")  # all points, and the last one of each name, which lists of runs show
LARGEST = 1.7976931348623157e308  # what MLflow writes for infinity
WAIT = 20.0  # seconds that another program may be writing, as MLflow has it
ALL = f"insert into metrics ({', '.join(COLUMNS)}) values (?, ?, ?, ?, ?, ?) on conflict do nothing"
LATEST = f"""insert into latest_metrics ({", ".join(COLUMNS)}) values (?, ?, ?, ?, ?, ?) on conflict (key, run_uuid)
do update set value = excluded.value, timestamp = excluded.timestamp, step = excluded.step, is_nan = excluded.is_nan
where (excluded.step, excluded.timestamp, excluded.value) > (step, timestamp, value)"""


def known(database: Path) -> bool:
    """Whether the file keeps metrics as this module writes them; another MLflow's may not."""
    with closing(sqlite3.connect(database, timeout=WAIT)) as connection:
        return all({row[1] for row in connection.execute(f"pragma table_info({table})")} == {*COLUMNS} for table in TABLES)


def add(database: Path, run_id: str, metrics: Sequence[Any]) -> None:
    """MLflow's Metrics of a run, all or none; those that are there already stay as they are. Raises sqlite3.Error."""
    rows = [(one.key, _stored(one.value), one.timestamp, one.step, math.isnan(one.value), run_id) for one in metrics]
    with closing(sqlite3.connect(database, timeout=WAIT)) as connection, connection:
        connection.executemany(ALL, rows)
        connection.executemany(LATEST, rows)


def _stored(value: float) -> float:
    """As MLflow writes it, which knows neither NaN nor infinity."""
    return 0.0 if math.isnan(value) else max(-LARGEST, min(LARGEST, float(value)))
