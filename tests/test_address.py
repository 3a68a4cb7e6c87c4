import pytest

from fedsim.base.address import hide, hide_known, whole
from fedsim.base.errors import Problem


@pytest.mark.parametrize(
    ("address", "shown"),
    [
        ("https://user:secret@host/x", "https://user:***@host/x"),
        ("https://:secret@host", "https://:***@host"),
        ("http://user:se@cret@host:80/", "http://user:***@host:80/"),
        ("https://user:se/cret@host", "https://user:***@host"),
        ("https://user:***@host", "https://user:***@host"),
        ("postgresql+psycopg2://user:1/secret@host:5432/db", "postgresql+psycopg2://user:***@host:5432/db"),
        ("postgresql://host/db?user=a&password=secret&sslmode=require", "postgresql://host/db?user=a&password=***&sslmode=require"),
        (
            "mssql+pyodbc:///?odbc_connect=UID%3Da%3BPWD%3Dsecret%3BServer%3Db",
            "mssql+pyodbc:///?odbc_connect=UID%3Da%3BPWD%3D***%3BServer%3Db",
        ),
        ("fedsim run a.yaml track.uri=https://user:secret@host b=c@d", "fedsim run a.yaml track.uri=https://user:***@host b=c@d"),
    ],
)
def test_passwords_are_hidden(address: str, shown: str) -> None:
    assert hide(address) == hide(shown) == shown


@pytest.mark.parametrize(
    "text",
    ["http://127.0.0.1:9: refused to me@host", "http://host:80/a@b", "sqlite:////a/b:c@d.db", "https://user@host", "a: b@c", "b.token=3"],
)
def test_what_has_no_password_stays(text: str) -> None:
    assert hide(text) == text


def test_a_password_is_hidden_however_it_is_written() -> None:
    assert hide_known("`p@w` and p%40w: http://u:p%40w@h/api said no", "http://u:p%40w@h") == "`***` and ***: http://u:***@h/api said no"
    assert hide_known("a b", "sqlite:////a/b") == "a b"


def test_the_environment_has_the_password(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_PASSWORD", raising=False)
    assert whole("https://host") == "https://host"
    with pytest.raises(ValueError, match=r"of https://u:\*\*\*@host is not kept .* MLFLOW_TRACKING_PASSWORD, or from MLFLOW_TRACKING_URI"):
        whole("https://u:***@host")
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "p@w")
    assert whole("https://u:***@host") == "https://u:p%40w@host"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "https://u:other@host")
    assert whole("https://u:***@host") == "https://u:other@host"


def test_a_caret_stays_below_its_word() -> None:
    line = "track: {uri: 'https://u:secret@host', name: 1}"
    problem = Problem("unknown `https://u:secret@host`", "a.yaml", 1, line.index("name") + 1, line, 4)
    assert problem.message == "unknown `https://u:***@host`"
    assert problem.text[problem.column - 1 :][: problem.width] == "name"
