"""One MLflow store: made whole or not at all, one upload at a time into a file of SQLite, and what it refuses costs nothing else."""

import logging
import os
import re
import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote

from fedsim.base.address import hide, hide_known
from fedsim.base.errors import FedsimError
from fedsim.report.mlflow import rows
from fedsim.report.mlflow.new import make, version
from fedsim.report.mlflow.places import database_of
from fedsim.report.mlflow.turns import BusyError, turn

PATIENCE = 60.0  # seconds that another process may take with the same file
BUSY = 5.0  # seconds that a program which takes no turns may be writing to it
REFUSALS = 20  # entries that a store refuses of one upload; more, and it is the store
ENTRIES = ("INVALID_PARAMETER_VALUE", "BAD_REQUEST")  # what MLflow says where it is the entry
QUIET = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "DO_NOT_TRACK": "true",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
    "MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR": "1",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "GIT_PYTHON_REFRESH": "quiet",
}


class UploadError(FedsimError):
    """MLflow could not be reached or refused; the run's folder has everything."""


class LockedError(UploadError):
    """The store is in use by another process; the same again may do."""


class Store:
    """One MLflow store and experiment; `refused` says what it would not take. Errors are MLflow's, see `why`."""

    def __init__(self, uri: str, experiment: str) -> None:
        import mlflow

        self.uri, self.experiment, self.refused = hide(uri), experiment, list[str]()
        self.whole_uri = uri  # with its password
        self.database = database_of(uri)
        self.client = mlflow.MlflowClient(uri)
        self.experiment_id = self._experiment()
        self.rows = self.database is not None and rows.known(self.database)  # whether metrics are written as such

    def _experiment(self) -> str:
        from mlflow.exceptions import MlflowException

        found: Any = self.client.get_experiment_by_name(self.experiment)
        if found is None:
            place = (self.database.parent / "mlartifacts").as_uri() if self.database else None
            try:
                return str(self.client.create_experiment(self.experiment, artifact_location=place))
            except MlflowException as error:
                found = self.client.get_experiment_by_name(self.experiment)  # another process was faster
                if found is None or error.error_code != "RESOURCE_ALREADY_EXISTS":
                    raise
        if found.lifecycle_stage == "deleted":
            raise UploadError(
                f"MLflow at {self.uri}: the experiment `{self.experiment}` is deleted there; restore it "
                f"(mlflow experiments restore -x {found.experiment_id}), or name another one: track.experiment"
            )
        return str(found.experiment_id)

    def alive(self) -> bool:
        """Whether it answers."""
        try:
            self.client.get_experiment(self.experiment_id)
        except Exception:  # whatever it is that client, server or driver says
            return False
        return True

    def log(self, run_id: str, kind: str, entries: Sequence[Any], most: int) -> None:
        """Sends `metrics`, `params` or `tags`, `most` in a request. One that is refused is told of in `refused`; the others arrive."""
        if kind == "metrics" and self.rows and self.database:
            return rows.add(self.database, run_id, entries)
        for start in range(0, len(entries), most):
            self._log(run_id, kind, entries[start : start + most])

    def _log(self, run_id: str, kind: str, entries: Sequence[Any]) -> None:
        from mlflow.exceptions import MlflowException

        try:
            send: Any = self.client.log_batch
            send(run_id, **{kind: entries})
        except MlflowException as error:
            if error.error_code not in ENTRIES or len(self.refused) >= REFUSALS:
                raise
            if len(entries) == 1:
                self.refused.append(f"`{entries[0].key}` ({_first(str(error))})")
                return
            half = len(entries) // 2
            self._log(run_id, kind, entries[:half])
            self._log(run_id, kind, entries[half:])


def quiet() -> None:
    """What MLflow has to know before it is imported."""
    for name, value in QUIET.items():
        os.environ.setdefault(name, value)


@contextmanager
def opened(uri: str, experiment: str) -> Iterator[Store]:
    """The store, made where it is a file that isn't there; no other upload to that file goes on meanwhile.

    Raises UploadError, in one line, for whatever happens within; what is wrong with the run's own files stays as it is.
    """
    quiet()
    try:
        with _turn(database_of(uri)):
            yield _ready(uri, experiment)
    except Exception as error:  # whatever client, server, driver or disk says: none of it may reach the run as a traceback
        if isinstance(error, FedsimError) and not isinstance(error, BusyError):
            raise
        kind = LockedError if re.search(r"is locked|is at work there", str(error)) else UploadError
        raise kind(f"MLflow at {hide(uri)}: {hide_known(why(error, uri), uri)}") from error


@contextmanager
def _turn(database: Path | None) -> Iterator[None]:
    if database is None:
        yield
        return
    database.parent.mkdir(parents=True, exist_ok=True)
    with turn(database.with_name(f"{database.name}.lock"), PATIENCE):
        yield


def _ready(uri: str, experiment: str) -> Store:
    import mlflow  # noqa: F401 (its loggers are there from here on)

    for name in ("mlflow", "alembic", "urllib3"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    database = database_of(uri)
    if database is not None:
        check_file(database) if database.exists() else make(database)
    return Store(uri, experiment)


def check_file(database: Path) -> None:
    """Raises what SQLite says where the file can't be written or is none: MLflow would try that again for minutes."""
    connection = sqlite3.connect(f"file:{quote(str(database))}?mode=rw", uri=True, timeout=BUSY)
    try:
        connection.execute("begin immediate")
        connection.execute("select count(*) from sqlite_master")
    finally:
        connection.close()


CURES = (
    (r"No space left|disk is full", "its disk is full"),
    (r"(\[Errno -?\d+\] )?Read-only file system|readonly database|\[Errno 30\]", "it can't be written (read-only)"),
    (r"database is locked", "another process holds it"),
    (r"unable to open database file", "the file can't be opened"),
    (r"file is not a database|malformed|disk image", "{file} is no whole SQLite database; {anew}"),
    (r"already exists|duplicate column|no such (table|column)|found version None", "{file} is the half of a store; {anew}"),
    (
        r"out-of-date database schema|Can't locate revision",
        "{file} was made by another MLflow than this {version}: if by an older one, keep a copy and call `mlflow db upgrade {uri}`; "
        "if by a newer one, update mlflow or track elsewhere (track.uri)",
    ),
)
ANEW = "move it away (mv {file} {file}.broken), and a new one is made: runs' folders have everything that fedsim uploaded"


def why(error: Exception, uri: str) -> str:
    """The cause in a few words, with the cure where there is one."""
    text = str(error).strip() or type(error).__name__
    return cure(text, uri) or _first(text)


def cure(text: str, uri: str) -> str:
    """The same of what was said, where it is known; else empty."""
    database = database_of(uri)
    for sign, said in CURES if database else ():
        if re.search(sign, text):
            return said.format(file=database, uri=uri, version=version(), anew=ANEW.format(file=database))
    return ""


def _first(text: str) -> str:
    """What the network says, or the first line."""
    cause = re.search(r"\[Errno -?\d+\] ([^'\")]+)|(timed out)", text)
    return (cause[1] or cause[2]).strip() if cause else text.splitlines()[0][:200]
