import importlib.util
import os
from pathlib import Path

import numpy as np
import pytest
from sklearn.datasets import load_digits

from fedsim.base.errors import SettingError
from fedsim.data.files import find_file
from fedsim.data.own import OwnSource
from fedsim.data.sources import Digits, Gaussians, Hub, Npz, source_for

X, Y = np.arange(12, dtype=np.float32).reshape(6, 2), np.array([0, 1, 0, 1, 0, 1])

real_data = pytest.mark.skipif("FEDSIM_DATA" not in os.environ, reason="FEDSIM_DATA is not set")


@pytest.fixture
def shelf(tmp_path, monkeypatch):
    """An empty folder that FEDSIM_DATA names."""
    monkeypatch.setenv("FEDSIM_DATA", str(tmp_path / "shelf"))
    (tmp_path / "shelf").mkdir()
    return tmp_path / "shelf"


def put(path: Path, **arrays) -> Path:
    path.parent.mkdir(exist_ok=True)
    np.savez(path, **arrays)
    return path


def test_digits_are_scaled_and_split_the_same_each_time():
    arrays = Digits().load(Path())
    assert arrays.x.shape == (1438, 8, 8, 1)
    assert arrays.x.min() == 0
    assert arrays.x.max() == 1
    assert len(arrays.x_test) == 359
    assert np.ptp(np.bincount(arrays.y_test)) <= 3
    assert np.array_equal(Digits().load(Path()).x_test, arrays.x_test)


def test_digits_are_those_of_scikit_learn():
    arrays, (x, y) = Digits().load(Path()), load_digits(return_X_y=True)
    assert (arrays.x.dtype, arrays.y.dtype, y.dtype) == (np.float32, np.int64, np.int64)
    assert sorted(zip(map(bytes, x / 16), y, strict=True)) == sorted(
        zip(
            map(bytes, np.concatenate([arrays.x, arrays.x_test]).astype(np.float64)), np.concatenate([arrays.y, arrays.y_test]), strict=True
        )
    )


def test_files_are_found_beside_the_scenario_first(shelf, tmp_path):
    beside, far = put(tmp_path / "a.npz", x=X), put(shelf / "a.npz", x=X)
    assert find_file("a", tmp_path) == find_file("a.npz", tmp_path) == beside
    assert find_file("a", tmp_path / "elsewhere") == far
    assert find_file(str(far), tmp_path) == far
    assert find_file("../a.npz", shelf) == shelf / "../a.npz"


def test_folders_and_stems_within_folders_are_found(shelf):
    mnist, second = put(shelf / "mnist" / "all.npz", x=X), put(shelf / "libsvm" / "a9a.npz", x=X)
    put(shelf / "libsvm" / "w8a.npz", x=X)
    assert find_file("mnist", shelf.parent) == mnist
    assert find_file("a9a", shelf.parent) == second
    with pytest.raises(SettingError, match=r"`libsvm` can be libsvm/a9a.npz or libsvm/w8a.npz: name the file"):
        find_file("libsvm", shelf.parent)


def test_a_missing_file_says_where_it_was_looked_for(shelf, monkeypatch):
    put(shelf / "mnist" / "all.npz", x=X)
    with pytest.raises(
        SettingError, match=r"no data `mnits`: .* beside the scenario \(/base\) and under FEDSIM_DATA \(.*shelf\); is `mnist` meant"
    ):
        find_file("mnits", Path("/base"))
    with pytest.raises(SettingError, match="it has: all, mnist"):
        find_file("other", Path("/base"))
    monkeypatch.delenv("FEDSIM_DATA")
    with pytest.raises(SettingError, match=r"beside the scenario \(/base\); FEDSIM_DATA is not set"):
        find_file("mnist", Path("/base"))


def test_names_of_arrays(tmp_path):
    file = put(
        tmp_path / "a.npz",
        x_train=X,
        y_train=Y,
        writer_train=Y + 5,
        x_test=X[:2],
        y_test=Y[:2],
        writer_test=Y[:2],
        x_val=X,
        class_names=["a", "b"],
    )
    arrays = Npz(str(file)).load(tmp_path)
    assert np.array_equal(arrays.x, X)
    assert {name: ids.tolist() for name, ids in arrays.keys.items()} == {"writer": (Y + 5).tolist()}
    assert arrays.test_keys["writer"].tolist() == [0, 1]
    put(tmp_path / "b.npz", x=X[4:], y=Y[4:], writer=Y[4:])
    other = Npz("a", test="b").load(tmp_path)
    assert np.array_equal(other.x_test, X[4:])
    assert other.test_keys["writer"].tolist() == [0, 1]
    put(tmp_path / "c.npz", x=X, y=Y)
    assert Npz("c").load(tmp_path).x_test is None


@pytest.mark.parametrize(
    ("arrays", "text"),
    [
        ({"x": X}, "labels missing: bad has no array y or y_train .it has: x."),
        ({"x": X, "y": Y, "x_test": X}, "test labels missing: bad has no array y_test"),
        ({"images": X, "y": Y}, "bad has no array x or x_train .it has: images, y."),
        ({"data": X, "indices": Y, "indptr": Y, "y": Y}, "bad: broken sparse table"),
        ({"x": np.array([{}, {}]), "y": Y[:2]}, "bad.npz can't be read as an .npz file: Object arrays"),
    ],
)
def test_files_without_what_is_needed(tmp_path, arrays, text):
    put(tmp_path / "bad.npz", **arrays)
    with pytest.raises(SettingError, match=f"task.data: .*{text}"):
        Npz("bad").load(tmp_path)


@pytest.mark.parametrize("content", [b"", b"a,b\n1,2\n", b"PK\x03\x04 cut off"])
def test_files_that_are_no_npz(tmp_path, content):
    (tmp_path / "bad.npz").write_bytes(content)
    with pytest.raises(SettingError, match=r"bad.npz can't be read as an .npz file"):
        Npz("bad").load(tmp_path)


def test_one_array_alone_is_no_npz(tmp_path):
    np.save(tmp_path / "one.npy", X)
    with pytest.raises(SettingError, match=r"one.npy can't be read as an .npz file"):
        Npz("one.npy").load(tmp_path)


def test_source_of_a_name():
    assert source_for("mnist") == Npz("mnist")
    assert source_for("my/file.npz") == Npz("my/file.npz")
    assert source_for("hub:ylecun/mnist") == Hub("ylecun/mnist")
    assert source_for("mine:load") is None


def load(rows: int = 6, labels: bool = True) -> dict[str, object]:
    return {"x": X[:rows].tolist(), "user": Y[:rows]} | ({"y": Y[:rows]} if labels else {})


def test_own_function():
    arrays = OwnSource(load, {"rows": 4}).load(Path())
    assert arrays.x.tolist() == X[:4].tolist()
    assert arrays.keys["user"].tolist() == [0, 1, 0, 1]
    with pytest.raises(SettingError, match=r"labels missing: .*:load has no array y"):
        OwnSource(load, {"labels": False}).load(Path())


@pytest.mark.parametrize(
    ("result", "text"),
    [
        (lambda: 1 / 0, "raised ZeroDivisionError: division by zero"),
        (lambda: (X, Y), "returned tuple, not a mapping"),
        (lambda: {"x": X, "y": 3}, "`y` is not an array with one entry a sample"),
        (lambda: {"x": [[1], [1, 2]], "y": Y[:2]}, "`x` is not an array with one entry a sample"),
    ],
)
def test_own_functions_that_fail(result, text):
    with pytest.raises(SettingError, match=text):
        OwnSource(result).load(Path())


has_hub = pytest.mark.skipif(importlib.util.find_spec("flwr_datasets") is None, reason="flwr-datasets is not installed")


@pytest.fixture
def hub_folder(tmp_path, monkeypatch):
    """A data set of the hub's form in a folder: flwr-datasets reads it as it reads one of the hub."""
    monkeypatch.setenv("FLWR_TELEMETRY_ENABLED", "0")
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    kinds = datasets.Features(
        {
            "pixels": datasets.Sequence(datasets.Value("float32"), length=2),
            "label": datasets.ClassLabel(names=["no", "yes"]),
            "writer": datasets.Value("string"),
            "text": datasets.Value("float32"),
        }
    )
    folder = tmp_path / "set"
    folder.mkdir()
    for split, rows in (("train", slice(None)), ("test", slice(0, 2))):
        columns = {
            "pixels": X[rows].tolist(),
            "label": Y[rows].tolist(),
            "writer": ["a", "b"] * len(Y[rows][::2]),
            "text": X[rows, 0].tolist(),
        }
        datasets.Dataset.from_dict(columns, features=kinds).to_parquet(str(folder / f"{split}.parquet"))
    return str(folder)


@has_hub
def test_hub_columns_are_found(hub_folder):
    arrays = Hub(hub_folder).load(Path())
    assert arrays.x.tolist() == X.tolist()
    assert arrays.y.tolist() == Y.tolist()
    assert arrays.y_test.tolist() == [0, 1]
    assert {name: ids.tolist() for name, ids in arrays.keys.items()} == {"writer": ["a", "b"] * 3}
    named = Hub(hub_folder, feature="text", label="writer").load(Path())
    assert named.x.tolist() == X[:, 0].tolist()
    (Path(hub_folder) / "test.parquet").unlink()
    assert Hub(hub_folder).load(Path()).x_test is None
    with pytest.raises(SettingError, match=r"has no column `image` for `feature` .it has: .*writer"):
        Hub(hub_folder, feature="image").load(Path())


@has_hub
def test_hub_that_can_not_be_reached(hub_folder):
    with pytest.raises(SettingError, match=r"task.data: hub:nobody/nothing can't be loaded: .*Error"):
        Hub("nobody/nothing").load(Path())


@real_data
@pytest.mark.parametrize(
    ("name", "shape", "keys"),
    [
        ("mnist", (60000, 28, 28), {"writer": 539}),
        ("cifar10", (10000, 32, 32, 3), {}),
        ("omniglot", (4840, 28, 28), {"writer": 160}),
        ("pneumoniamnist", (4708, 28, 28), {}),
        ("uci_har", (7720, 9, 128), {"user": 30}),
    ],
)
def test_real_files(name, shape, keys, tmp_path):
    arrays = source_for(name).load(tmp_path)
    assert arrays.x.shape == shape
    assert {key: len(np.unique(arrays.keys[key])) for key in keys} == keys


def test_gaussians_lie_as_far_apart_as_asked(folder: Path) -> None:
    arrays = Gaussians(gap=3.0, sigma=0.5, samples=2000, features=2).load(folder)
    assert arrays.x_test is not None and arrays.y_test is not None
    for x, y in ((arrays.x, arrays.y), (arrays.x_test, arrays.y_test)):
        assert x.shape == (2000, 2) and y.sum() == 1000
        for label, mean in ((0, -1.5), (1, 1.5)):
            np.testing.assert_allclose(x[y == label].mean(0), [mean, 0], atol=5 * 0.5 / 1000**0.5)
            np.testing.assert_allclose(x[y == label].std(0), 0.5, rtol=0.15)
    assert not np.array_equal(arrays.x, arrays.x_test)
