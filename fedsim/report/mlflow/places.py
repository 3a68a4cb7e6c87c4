"""Where a store is that is a file of SQLite, and how such a file is addressed."""

import re
from pathlib import Path
from urllib.parse import unquote


def database_of(uri: str) -> Path | None:
    """The file of an SQLite store; None of others, and of one in memory."""
    path = re.fullmatch(r"sqlite(?:\+\w+)?:///([^?]+)(?:\?.*)?", uri)
    return Path(unquote(path[1])).absolute() if path and path[1] != ":memory:" else None


def uri_of(database: Path) -> str:
    """The address of a file, whatever its folders are called."""
    return f"sqlite:///{escaped(database.absolute())}"


def escaped(path: Path) -> str:
    """Without the two signs that mean something else in SQLAlchemy's addresses."""
    return str(path).replace("%", "%25").replace("?", "%3F")


def whole_uri(uri: str) -> str:
    """`sqlite:///runs/mlflow.db` with the absolute path, so that the working folder does not matter later."""
    path = re.fullmatch(r"(sqlite(?:\+\w+)?):///([^/?].*)", uri)
    return f"{path[1]}:///{Path(escaped(Path.cwd())) / path[2]}" if path and path[2] != ":memory:" else uri


def in_memory(uri: str) -> bool:
    """Whether what it takes ends with the process."""
    return uri.startswith("sqlite:") and database_of(uri) is None
