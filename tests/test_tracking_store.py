import json
import math
import os
import re
import shutil
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path
from typing import Any

import mlflow
import pytest
from folders import simulate, write_run, write_sweep
from mlflow.exceptions import MlflowException

from fedsim.base.errors import FedsimError
from fedsim.report.mlflow import new
from fedsim.report.mlflow import rows as mlflow_rows
from fedsim.report.mlflow import store as mlflow_store
from fedsim.report.mlflow import upload as uploading
from fedsim.report.mlflow.names import taken, told
from fedsim.report.mlflow.store import LockedError, UploadError
from fedsim.report.mlflow.turns import turn
from fedsim.report.mlflow.upload import upload

SCENARIO = "seed: 0\nstrategy: {name: fedavg}\n"


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with a run, in a folder that there was not."""
    folder = tmp_path_factory.mktemp("store")
    upload(a_run(folder / "a"), f"sqlite:///{folder}/new é 1/mlflow.db", "first")
    return folder / "new é 1/mlflow.db"


def a_run(folder: Path, scenario: str = SCENARIO, **more: Any) -> Path:
    """A run with two evaluations; `more` is in the last one too."""
    rows, records = simulate([300, 200], 2, 1000, 1000)
    return write_run(folder, rows, [*records[:-1], records[-1] | more], scenario)


def stored(store: Path, folder: Path) -> mlflow.entities.Run:
    return mlflow.MlflowClient(f"sqlite:///{store}").get_run(json.loads((folder / "mlflow.json").read_text())["run_id"])


def test_names_are_translated_by_one_rule() -> None:
    long = "n" * 251
    names = ["a/b", "a@b", "a%b", "a_b", "é 1:2", "x//y", "/x", "x/..", "", long, long + "m", "0->1\n"]
    assert list(taken(names).values()) == [
        "a/b",
        "a_b",
        "a_b_2",
        "a_b_3",
        "é 1:2",
        "x/_/y",
        "_/x",
        "x/__",
        "_",
        "n" * 250,
        "n" * 248 + "_2",
        "0-_1_",
    ]
    assert [taken(names[:size]) for size in range(len(names))] == [dict(list(taken(names).items())[:size]) for size in range(len(names))]
    assert told({"a": "a"}) == ""
    assert told({"a": "a", "a@b": "a_b", "c@d": "c_d"}) == "`a@b` is called `a_b` there (and 1 more)"


def test_everything_arrives_whatever_its_name_and_value(store: Path, tmp_path: Path) -> None:
    odd: dict[str, Any] = {
        "test/f1@10%": 0.5,
        "0->1": 7.0,
        "auc": math.nan,
        "up": math.inf,
        "n" * 300: 1.0,
        "time/seconds": 1e30,
    }
    scenario = f"seed: 0\nabout: '{'long ' * 2000}'\ntrack:\n  tags: {{\"team's tag!\": a=b, note: '{'t' * 9000}'}}\n"
    run = a_run(tmp_path / "run", scenario, **odd)
    said = upload(run, f"sqlite:///{store}", "f1@macro (50%) / é")
    assert said.startswith("f1@macro (50%) / é: 1 run, 2 evaluations at ") and said.count("is called") == 1
    assert said.endswith("mlflow.db; `test/f1@10%` is called `test/f1_10_` there (and 4 more)")
    run_there = stored(store, run)
    metrics = run_there.data.metrics
    assert run_there.info.status == "FINISHED" and run_there.data.tags["team_s tag_"] == "a=b"
    assert len(run_there.data.params["about"]) == 500 and len(run_there.data.tags["note"]) == 5000
    assert metrics["test/f1_10_"] == 0.5 and metrics["0-_1"] == 7 and metrics["n" * 250] == 1 and math.isnan(metrics["auc"])
    assert metrics["up"] > 1e308 and metrics["x_by_second/test/accuracy"] == metrics["test/accuracy"]


def test_what_a_store_refuses_costs_nothing_else(store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = mlflow.MlflowClient.log_batch

    def picky(self: mlflow.MlflowClient, run_id: str, **kinds: Any) -> None:
        [entries] = kinds.values()
        if {entry.key for entry in entries} & {"test/loss", "seed"}:
            raise MlflowException("not this one", error_code=1000)  # INVALID_PARAMETER_VALUE
        log(self, run_id, **kinds)

    monkeypatch.setattr(mlflow.MlflowClient, "log_batch", picky)
    monkeypatch.setattr(mlflow_rows, "known", lambda _: False)  # as a server, or an MLflow with other tables
    run = a_run(tmp_path / "run")
    said = upload(run, f"sqlite:///{store}", "picky")
    assert said.endswith("; MLflow refused `seed` (not this one), `test/loss` (not this one)")
    there = stored(store, run)
    assert there.info.status == "FINISHED" and there.data.params == {"strategy.name": "fedavg"}
    assert "test/loss" not in there.data.metrics and len(there.data.metrics) == 14 + 2 * 4  # rounds, seconds and kilobytes as steps


def test_rows_are_what_mlflow_itself_writes(store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert mlflow_rows.known(store)
    written = []
    for rows in (True, False):
        monkeypatch.setattr(mlflow_rows, "known", lambda _, rows=rows: rows)
        run = a_run(tmp_path / f"run {rows}", auc=math.nan, up=math.inf, down=-math.inf)
        for _ in range(2):  # the second time all is there already
            upload(run, f"sqlite:///{store}", f"rows {rows}")
            (run / "mlflow.json").write_text(json.dumps(json.loads((run / "mlflow.json").read_text()) | {"metrics": 0}))
        asked = "select key, value, timestamp, step, is_nan from {} where run_uuid = ? order by key, step"
        with closing(sqlite3.connect(store)) as reading:
            written.append(
                [reading.execute(asked.format(table), [stored(store, run).info.run_id]).fetchall() for table in mlflow_rows.TABLES]
            )
    [points, latest], by_mlflow = written
    assert written[0] == by_mlflow and len(points) == 2 * len(latest) - 3
    assert {row[0]: (row[1], row[4]) for row in latest if row[0] in ("auc", "down", "up")} == {
        "auc": (0.0, 1),
        "down": (-sys.float_info.max, 0),
        "up": (sys.float_info.max, 0),
    }


def test_a_store_is_made_of_kept_tables_and_without(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    tables, places = [], []
    for name in ("new", "copied", "damaged"):
        with mlflow_store.opened(f"sqlite:///{tmp_path}/{name}/mlflow.db", "one"):
            pass
        with closing(sqlite3.connect(tmp_path / name / "mlflow.db")) as reading:
            listed = reading.execute("select type, name, tbl_name, sql from sqlite_master order by type, name").fetchall()
            tables.append([(*one, *sorted(re.findall(r"\w+", sql or ""))) for *one, sql in listed])  # in any order: MLflow has none
            places += reading.execute("select artifact_location from experiments order by experiment_id").fetchall()
        [kept] = (tmp_path / "cache/fedsim").iterdir()
        if name == "copied":
            packed = bytearray(kept.read_bytes())
            packed[len(packed) // 2] ^= 1
            kept.write_bytes(packed)
    assert tables[0] == tables[1] == tables[2] and len(tables[0]) > 50
    expected = [(f"{(tmp_path / name).as_uri()}/mlartifacts{more}",) for name in ("new", "copied", "damaged") for more in ("/0", "")]
    assert [place[0].removesuffix("/1") for place in places] == [one[0] for one in expected]


def test_what_cannot_be_kept_leaves_nothing(store: Path, tmp_path: Path) -> None:
    (tmp_path / "cache/kept").mkdir(parents=True)  # in the place of the file
    new._keep(store, tmp_path / "cache/kept")
    new._keep(tmp_path / "none", tmp_path / "cache/other")
    assert [path.name for path in (tmp_path / "cache").iterdir()] == ["kept"]


def test_a_damaged_run_is_named_alone_and_others_arrive(store: Path, tmp_path: Path) -> None:
    upper = tmp_path / "demo/20261121-142530-3f9a1c"
    runs = [a_run(upper / name) for name in "ab"]
    write_sweep(upper, "ab")
    (runs[0] / "run.json").write_text("{")
    with pytest.raises(FedsimError, match=f"^{runs[0]}/run.json: broken"):
        upload(upper, f"sqlite:///{store}", "damaged")
    assert stored(store, runs[1]).info.status == "FINISHED"


def test_a_run_is_closed_whatever_fails_and_others_arrive(store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    upper = tmp_path / "demo/20261121-142530-3f9a1c"
    runs = [a_run(upper / name) for name in "ab"]
    write_sweep(upper, "ab")
    with monkeypatch.context() as broken:
        broken.setattr(mlflow.MlflowClient, "log_artifact", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left on device")))
        with pytest.raises(UploadError, match="its disk is full"):
            upload(upper, f"sqlite:///{store}", "closed")
    there = [stored(store, folder) for folder in (upper, *runs)]
    assert [run.info.status for run in there] == ["FINISHED"] * 3 and all("test/loss" in run.data.metrics for run in there[1:])
    upload(upper, f"sqlite:///{store}", "closed")
    client = mlflow.MlflowClient(f"sqlite:///{store}")
    assert client.list_artifacts(there[1].info.run_id) and len(client.search_runs([there[0].info.experiment_id])) == 3


def test_a_run_whose_id_was_not_written_down_is_found_again(store: Path, tmp_path: Path) -> None:
    run, client = a_run(tmp_path / "run"), mlflow.MlflowClient(f"sqlite:///{store}")
    upload(run, f"sqlite:///{store}", "again")
    first = stored(store, run).info
    kept = json.loads((run / "mlflow.json").read_text())
    for damaged in (json.dumps(kept | {"run_id": "", "metrics": 0}), "{", json.dumps({"other": 1})):
        (run / "mlflow.json").write_text(damaged)
        upload(run, f"sqlite:///{store}", "again")
        assert [found.info.run_id for found in client.search_runs([first.experiment_id])] == [first.run_id]
        assert len(client.get_metric_history(first.run_id, "test/loss")) == 2
    client.delete_run(first.run_id)
    upload(run, f"sqlite:///{store}", "again")
    assert stored(store, run).info.run_id != first.run_id
    client.delete_experiment(first.experiment_id)
    with pytest.raises(UploadError, match=f"`again` is deleted there; restore it .mlflow experiments restore -x {first.experiment_id}"):
        upload(run, f"sqlite:///{store}", "again")


ALL_AT_ONCE = """
import os, sys
import mlflow.store.db.utils as utils
from fedsim.report.mlflow.tracking import main

def child(*words):
    if not (number := os.fork()):
        os._exit(main(words))
    return number

place, *runs = sys.argv[1:]
right, utils._upgrade_db = utils._upgrade_db, lambda engine: os._exit(9)
print(os.waitstatus_to_exitcode(os.waitpid(child(runs[0], "--uri", place), 0)[1]), os.listdir(place[10:-10]), flush=True)
utils._upgrade_db = right
for number in [child(run, "--uri", place, "--experiment", "one") for run in runs]:
    os.waitpid(number, 0)
"""


def test_several_at_once_into_a_new_store_after_one_that_died_when_it_made_it(tmp_path: Path) -> None:
    place = tmp_path / "new/mlflow.db"
    runs = [a_run(tmp_path / f"demo/{number}") for number in range(3)]
    anew = os.environ | {"XDG_CACHE_HOME": str(tmp_path / "cache")}  # no store was made before
    words = [sys.executable, "-c", ALL_AT_ONCE, f"sqlite:///{place}", *map(str, runs)]
    died, *others = subprocess.run(words, stdout=subprocess.PIPE, text=True, timeout=200, env=anew).stdout.splitlines()
    assert died.startswith("9 [") and "'mlflow.db.part'" in died and "'mlflow.db'" not in died
    assert others == [f"one: 1 run, 2 evaluations at sqlite:///{place}"] * 3
    assert [stored(place, run).info.status for run in runs] == ["FINISHED"] * 3
    assert len({stored(place, run).info.experiment_id for run in runs}) == 1
    assert {file.name for file in place.parent.iterdir()} == {"mlflow.db", "mlflow.db.lock", "mlartifacts"}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("delete from alembic_version", "{file} is the half of a store; move it away (mv {file} {file}.broken), and a new one is made"),
        ("drop table trace_tags; delete from alembic_version", "{file} is the half of a store; move it away"),
        (
            "update alembic_version set version_num = 'ffff'",
            "if by an older one, keep a copy and call `mlflow db upgrade sqlite:///{file}`",
        ),
        (None, "{file} is no whole SQLite database; move it away (mv {file} {file}.broken)"),
    ],
)
def test_a_broken_store_is_named_with_the_cure(store: Path, tmp_path: Path, change: str | None, said: str) -> None:
    file = tmp_path / "bad.db"
    if change is None:
        file.write_text("no database " * 100)
    else:
        shutil.copy(store, file)
        connection = sqlite3.connect(file)
        connection.executescript(change)
        connection.close()
    with pytest.raises(UploadError) as caught:
        upload(a_run(tmp_path / "run"), f"sqlite:///{file}", "broken")
    assert str(caught.value).startswith(f"MLflow at sqlite:///{file}: ") and said.format(file=file) in str(caught.value)
    assert not (tmp_path / "run/mlflow.json").exists()


def test_a_locked_store_and_a_folder_at_work(store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mlflow_store, "BUSY", 0.1)
    monkeypatch.setattr(mlflow_store, "PATIENCE", 0.1)
    monkeypatch.setattr(uploading, "PATIENCE", 0.1)
    run, other = a_run(tmp_path / "run"), sqlite3.connect(store)
    other.execute("begin exclusive")
    with pytest.raises(LockedError, match=f"MLflow at sqlite:///{store}: another process holds it"):
        upload(run, f"sqlite:///{store}", "locked")
    other.close()
    for file in (run / "mlflow.lock", store.with_name("mlflow.db.lock")):
        with turn(file, 0), pytest.raises(LockedError, match=f"process {os.getpid()} is at work there .it holds {file}"):
            upload(run, f"sqlite:///{store}", "locked")
    assert upload(run, f"sqlite:///{store}", "locked").startswith("locked: 1 run")
