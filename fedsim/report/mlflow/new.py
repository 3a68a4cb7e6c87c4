"""A new MLflow store in a file of SQLite: whole or not at all, and at once where one was made on this machine before."""

import gzip
import os
import shutil
import sqlite3
from contextlib import closing, suppress
from importlib import metadata
from pathlib import Path
from typing import Any

from fedsim.report.mlflow.places import uri_of


def make(database: Path) -> None:
    """A new store under its name only when it is complete, so that a process that ends meanwhile leaves no half of one."""
    draft, empty = database.with_name(f"{database.name}.part"), _empty()
    for left in (draft, draft.with_name(f"{draft.name}-journal")):  # by one that was killed
        left.unlink(missing_ok=True)
    try:
        if not _copied(empty, draft, database.parent):
            _begin(draft, database.parent)
            _keep(draft, empty)
        if not database.exists():  # a program that does not wait for its turn may have made one
            draft.rename(database)
    finally:
        draft.unlink(missing_ok=True)


def _begin(draft: Path, place: Path) -> None:
    """Tables, where there are none yet, and the experiment that MLflow wants to be there."""
    from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

    make: Any = SqlAlchemyStore
    try:
        make(uri_of(draft), (place / "mlartifacts").as_uri()).engine.dispose()
    finally:
        SqlAlchemyStore._engine_map.pop(uri_of(draft), None)


def _empty() -> Path:
    """Tables without content, kept in the user's cache: making them takes MLflow seconds, as it replays its whole history.

    Packed, as that has a checksum: one damaged byte of them would else be in every store.
    """
    base = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    return Path(base) / "fedsim" / f"mlflow-{version()}.db.gz"


def _copied(empty: Path, draft: Path, place: Path) -> bool:
    """Whether a store could be begun with tables that were kept; nothing is left where not."""
    try:
        draft.write_bytes(gzip.decompress(empty.read_bytes()))
        with closing(sqlite3.connect(draft)) as connection:
            connection.execute("select * from alembic_version").fetchall()  # MLflow tries damaged ones again for long
        _begin(draft, place)
    except Exception:  # there are none, or whatever SQLite or MLflow says of damaged ones
        draft.unlink(missing_ok=True)
        return False
    return True


def _keep(draft: Path, empty: Path) -> None:
    """Where the cache can be written; nothing else is left there."""
    part = empty.with_name(f"{empty.name}.{os.getpid()}")
    with suppress(OSError, sqlite3.Error):
        empty.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(draft, part)
        with closing(sqlite3.connect(part)) as connection, connection:
            connection.execute("delete from experiments")  # one, which knows its place
        part.write_bytes(gzip.compress(part.read_bytes()))
        part.replace(empty)
    with suppress(OSError):
        part.unlink(missing_ok=True)


def version() -> str:
    """MLflow's."""
    return metadata.version("mlflow")
