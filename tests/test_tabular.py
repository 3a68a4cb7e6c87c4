"""Tables, folders of pictures and saved data sets as people have them, by hand; and what is wrong with some, named."""

from io import StringIO
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest
import torch
from PIL import Image

from fedsim.base.errors import SettingError
from fedsim.data.arrays import Arrays
from fedsim.data.own import OwnSource
from fedsim.data.partition import Natural
from fedsim.data.pictures import ImageFolder, Saved
from fedsim.data.sources import Npz, source_for
from fedsim.data.tabular import Table
from fedsim.models import Logistic
from fedsim.task.build import build_task
from fedsim.task.settings import TaskSettings

PATIENTS = "age,sex,bmi,hospital,sick\n34,F,22,north,0\n61,M,,south,1\n45,F,26,west,0\n60,,30,north,1\n"


def read(folder: Path, text: str | bytes = PATIENTS, file: str = "t.csv", **settings: object) -> Arrays:
    (folder / file).write_bytes(text if isinstance(text, bytes) else text.encode())
    return Table(file, **settings).load(folder).ready()


def refused(folder: Path, text: str | bytes = PATIENTS, **settings: object) -> str:
    with pytest.raises(SettingError) as caught:
        read(folder, text, **settings)
    assert caught.value.key == "task.data"
    return caught.value.message


def test_a_table_by_hand(tmp_path):
    """Ages 34 to 61 as 0 to 1; F and M; the mean of 22, 26 and 30 in the gap; an empty sex is neither."""
    found = read(tmp_path, fill="mean", scale="minmax", skip=("hospital",))
    assert found.columns == ("age", "sex", "sex", "bmi")
    expected = [[0, 1, 0, 0], [1, 0, 1, 0.5], [11 / 27, 1, 0, 0.5], [26 / 27, 0, 0, 1]]
    assert found.x == pytest.approx(np.array(expected), rel=1e-6) and found.x.dtype == np.float32
    assert (found.y.tolist(), found.keys["hospital"].tolist()) == ([0, 1, 0, 1], ["north", "south", "west", "north"])
    assert found.note == "label sick; scaled (minmax) and gaps filled (mean) by the training rows alone"
    dropped = read(tmp_path, fill="drop", scale="none", columns=("bmi", "age"))
    assert dropped.x.tolist() == [[22, 34], [26, 45], [30, 60]] and dropped.y.tolist() == [0, 0, 1]


@pytest.mark.parametrize(("fill", "value"), [("mean", 26.0), ("median", 24.0), ("zero", 0.0)])
def test_gaps_are_filled(tmp_path, fill, value):
    assert read(tmp_path, "b,y\n22,0\n,1\n24,0\n32,1\n", fill=fill, scale="none").x[1] == value


def test_a_standardised_column(tmp_path):
    found = read(tmp_path, "b,c,y\n1,7,0\n3,7,1\n")
    assert found.x.tolist() == [[-1, 0], [1, 0]]


def test_a_second_table_is_seen_as_the_first(tmp_path):
    (tmp_path / "more.csv").write_text("b,kind,y\n5,c,1\n1,a,0\n")
    found = read(tmp_path, "b,kind,y\n1,a,0\n3,b,1\n", test="more.csv")
    assert found.x_test is not None and found.x_test.tolist() == [[3, 0, 0], [-1, 1, 0]]


def test_rows_that_are_held_out_have_no_say_in_means(tmp_path):
    """Of 2,000 rows a fifth is held out; whichever it is, training rows have mean 0 and deviation 1, and the gap is their mean, so 0."""
    rows = "".join(f"{(7 * n) % 1000 if n else ''},{n % 2}\n" for n in range(2000))
    (tmp_path / "t.csv").write_text("a,y\n" + rows)
    task = build_task(TaskSettings(data=Table("t", fill="mean"), model=Logistic()), 0, {}, tmp_path)
    mine, tests = task.inputs[:, 0].double(), task.test_inputs[:, 0].double()
    assert abs(float(mine.mean())) < 1e-6 and abs(float(mine.std(correction=0)) - 1) < 1e-6
    assert 1e-4 < abs(float(tests.mean())) < 0.2
    assert float(torch.cat([mine, tests]).abs().min()) == 0


@pytest.mark.parametrize(
    ("labels", "y", "names"),
    [
        ("1 2 3 1 2 3", [0, 1, 2, 0, 1, 2], ("1", "2", "3")),
        ("0 70 9 0 70 9", [0, 2, 1, 0, 2, 1], ("0", "9", "70")),
        ("0 1 1 0 1 0", [0, 1, 1, 0, 1, 0], ()),
        ("b a a b a b", ["b", "a", "a", "b", "a", "b"], ()),
        ("0.5 1.0 1.5 2.0 2.5 3.0", [0.5, 1, 1.5, 2, 2.5, 3], ()),
        ("true false true false true false", [True, False] * 3, ()),
    ],
)
def test_labels_as_tables_have_them(tmp_path, labels, y, names):
    found = read(tmp_path, "x,y\n" + "".join(f"{n},{one}\n" for n, one in enumerate(labels.split())))
    assert (found.y.tolist(), found.names) == (y, names)


def test_the_column_of_the_nodes_is_no_feature(tmp_path):
    """Nor are times, and texts of too many kinds; classes have the labels' names."""
    rows = "".join(f"{n % 3},{'nsw'[n % 3]},id{n},2026-01-0{n % 9 + 1},{n % 2 + 1}\n" for n in range(60))
    (tmp_path / "t.csv").write_text("a,site,who,day,y\n" + rows)
    settings = TaskSettings(data=Table("t"), partition=Natural("site"), model=Logistic())
    task = build_task(settings, 0, {}, tmp_path)
    assert (task.nodes, task.classes, list(task.inputs.shape)) == (3, 2, [48, 1])
    assert task.given is not None and task.given.names == ("1", "2")
    assert task.given.note == "label y; no features: who, day; scaled (standard) by the training rows alone"


def test_parquet_tsv_and_other_signs_read_alike(tmp_path):
    columns = {"a": [1.0, 3.0], "k": ["u", "v"], "y": ["no", "yes"]}
    pa.parquet.write_table(pa.table(columns), tmp_path / "p.parquet")
    pa.parquet.write_table(pa.table(columns | {"k": pa.array(["u", "v"]).dictionary_encode()}), tmp_path / "d.parquet")
    found = [source_for(f"{name}.parquet").load(tmp_path).ready() for name in "pd"]
    found += [read(tmp_path, "a\tk\ty\n1\tu\tno\n3\tv\tyes\n", "t.tsv"), read(tmp_path, "a;k;y\r\n1;u;no\r\n3;v;yes\r\n")]
    for one in found:
        assert (one.x.tolist(), one.y.tolist()) == ([[-1, 1, 0], [1, 0, 1]], ["no", "yes"])


def test_other_encodings(tmp_path):
    text = "größe,y\n1,ä\n2,b\n".encode("latin-1")
    assert "can't be read as a table" in (said := refused(tmp_path, text)) and "`encoding` may be another, such as latin-1" in said
    assert read(tmp_path, text, encoding="latin-1").y.tolist() == ["ä", "b"]
    assert "unknown encoding" in refused(tmp_path, text, encoding="klingon")


@pytest.mark.parametrize(
    ("text", "settings", "said"),
    [
        (PATIENTS, {}, "column `bmi` has a gap in row 1 (the first row is 0); `fill: mean`, `median`, `zero` or `drop` mends it"),
        (PATIENTS, {"label": "ill"}, "t.csv has no column `ill` (it has: age, sex, bmi, hospital, sick)"),
        ("a,y\n1,0\n2,\n3,\n", {"fill": "mean"}, "column `y` has a gap in row 1 (the first row is 0) and 1 more; `fill: drop` mends it"),
        ("a,a,y\n1,2,0\n", {}, "two columns are called `a`"),
        ("a,y\n1,0\nmany,1\n3,0\n", {}, "column `a` holds numbers, and the text 'many' in row 1"),
        ("a,y\n1,0\n1,2,3\n", {}, "Expected 2 columns, got 3"),
        ("a,b,y\n,1,0\n,2,1\n", {}, "column `a` is empty: leave it out by `skip: [a]`"),
        ("a,y\n,0\n,\n", {"fill": "drop", "columns": ("a",)}, "column `a` is empty"),
        ("day,y\n2026-01-01,0\n2026-01-02,1\n", {}, "t.csv has no column that can be a feature"),
        ("a,y\n", {}, "it has no line below its names"),
        ("", {}, "can't be read as a table"),
        (b"PAR1 no", {"file": "t.parquet"}, "t.parquet can't be read as a table"),
    ],
)
def test_what_is_wrong_is_named(tmp_path, text, settings, said):
    assert said in refused(tmp_path, text, **settings)


class Terminal(StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize("where", [Terminal, StringIO])
def test_reading_says_on_a_terminal_how_far_it_is_and_what_it_took(tmp_path, monkeypatch, where):
    screen = where()
    monkeypatch.setattr("sys.stderr", screen)
    for name in ("PATIENCE", "REFRESH", "TOLD"):
        monkeypatch.setattr(f"fedsim.base.reading.{name}", 0.0)
    read(tmp_path, fill="mean")
    picture(tmp_path / "shots" / "cat" / "1.png", (1, 2, 3))
    ImageFolder("shots").load(tmp_path)
    said = screen.getvalue()
    assert ("reading t.csv  0.0 %  00:00" in said and "sorting the columns of t.csv  50.0 %" in said) == (where is Terminal)
    ends = [line.split("\x1b[2K")[-1] for line in said.split("\n")[:-1]]
    assert [line.split(" read in")[0] for line in ends] == (["t.csv: 4 rows", "shots: 1 pictures"] if where is Terminal else [])
    assert said == "" or (ends[0].endswith("224 B of memory") and ends[1].endswith("36 B of memory"))


def picture(file: Path, colour: object, mode: str = "RGB", size: tuple[int, int] = (4, 3)) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size, colour).save(file)


def test_a_folder_of_pictures_by_hand(tmp_path):
    """Width 4, height 3; a grey one among coloured ones has three equal channels."""
    picture(tmp_path / "pets/train/dog/1.png", (10, 20, 30))
    picture(tmp_path / "pets/train/cat/1.png", 7, "L")
    picture(tmp_path / "pets/test/cat/x.jpg", (0, 0, 0))
    (tmp_path / "pets/train/cat/notes.txt").write_text("no picture")
    found = source_for("pets").load(tmp_path)
    assert (found.x.shape, found.x.dtype, found.y.tolist()) == ((2, 3, 4, 3), np.uint8, ["cat", "dog"])
    assert found.x[:, 0, 0].tolist() == [[7, 7, 7], [10, 20, 30]]
    assert found.x_test is not None and found.x_test.shape == (1, 3, 4, 3) and found.y_test.tolist() == ["cat"]
    assert ImageFolder("pets", size=(2, 2), colours="grey").load(tmp_path).x.shape == (2, 2, 2)
    assert Npz("pets").anchored(tmp_path) == Npz(str(tmp_path / "pets"))


def test_pictures_that_are_not_as_they_seem(tmp_path):
    def said(name: str) -> str:
        with pytest.raises(SettingError) as caught:
            ImageFolder(name).load(tmp_path)
        return caught.value.message

    picture(tmp_path / "a/cat/1.png", 7, "L")
    picture(tmp_path / "a/dog/2.png", 7, "L", (5, 3))
    assert said("a") == "pictures are of unequal sizes: a/cat/1.png has 3 x 4 pixels, a/dog/2.png 3 x 5; `size: [3, 4]` resizes all"
    (tmp_path / "b/cat").mkdir(parents=True)
    (tmp_path / "b/cat/1.png").write_bytes((tmp_path / "a/cat/1.png").read_bytes()[:40])
    assert "b/cat/1.png can't be read as a picture: " in said("b")
    picture(tmp_path / "c/cat/1.tif", 7, "F")
    assert "its numbers are no bytes (mode F)" in said("c")
    (tmp_path / "d").mkdir()
    assert "has no folders with pictures" in said("d")
    assert "no folder `e` beside the scenario" in said("e")


def test_a_saved_data_set(tmp_path):
    datasets = pytest.importorskip("datasets")
    kinds = datasets.Features({"x": datasets.Array2D((2, 2), "float32"), "label": datasets.ClassLabel(names=["no", "yes"])})
    rows = {"x": np.arange(12.0, dtype=np.float32).reshape(3, 2, 2), "label": [0, 1, 1]}
    datasets.DatasetDict({"train": datasets.Dataset.from_dict(rows, kinds)}).save_to_disk(str(tmp_path / "kept"))
    for source in (Saved("kept"), source_for("kept")):
        found = source.load(tmp_path)
        assert (found.x.tolist(), found.y.tolist(), found.x_test) == (rows["x"].tolist(), [0, 1, 1], None)
    with pytest.raises(SettingError, match="no saved data set `lost`"):
        Saved("lost").load(tmp_path)


def test_own_functions_have_no_columns(tmp_path):
    assert OwnSource(lambda: {"x": np.zeros((2, 2)), "y": np.zeros(2)}).load(tmp_path).columns == ()
