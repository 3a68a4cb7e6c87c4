"""Data sets of the Hugging Face hub, through flwr-datasets, and saved ones, through datasets: these are imported only here."""

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from fedsim.data.arrays import Array, Arrays, complaint


def load_hub(dataset: str, subset: str | None, feature: str | None, label: str | None) -> Arrays:
    """The splits `train` and, if there, `test` as arrays; other columns of whole numbers or short texts are natural ids.

    Raises SettingError where the package or the network is missing, or a column must be named.
    """
    try:
        from flwr_datasets import FederatedDataset
    except ImportError as error:
        raise complaint(f"hub:{dataset} needs flwr-datasets (pip install 'flwr-datasets[vision]'): {error}") from error
    try:
        splits = FederatedDataset(dataset=dataset, subset=subset, partitioners={}, shuffle=False)
        train = splits.load_split("train")
    except Exception as error:
        first = next(iter(str(error).splitlines()), "")
        raise complaint(f"hub:{dataset} can't be loaded: {type(error).__name__}: {first}") from error
    try:
        test = splits.load_split("test")
    except ValueError:
        test = None  # there is no such split
    return _arrays(f"hub:{dataset}", train, test, feature, label)


def load_saved(folder: Path, feature: str | None, label: str | None) -> Arrays:
    """The same of a data set that `save_to_disk` wrote into a folder."""
    try:
        from datasets import DatasetDict, load_from_disk

        found = load_from_disk(str(folder))
    except Exception as error:
        raise complaint(f"{folder.name} can't be read as a saved data set: {type(error).__name__}: {error}") from error
    if not isinstance(found, DatasetDict):
        return _arrays(folder.name, found, None, feature, label)
    if "train" not in found:
        raise complaint(f"{folder.name} has no split `train` (it has: {', '.join(found)})")
    return _arrays(folder.name, found["train"], found.get("test"), feature, label)


def _arrays(dataset: str, train: Any, test: Any, feature: str | None, label: str | None) -> Arrays:
    x, y = _columns(dataset, train.features, feature, label)
    keys = [c for c in train.column_names if c not in (x, y) and _is_id(train.features[c])]
    read = partial(_array, dataset)
    if test is None:
        return Arrays(read(train, x), read(train, y), keys={c: read(train, c) for c in keys})
    ids, test_ids = ({c: read(rows, c) for c in keys} for rows in (train, test))
    return Arrays(read(train, x), read(train, y), read(test, x), read(test, y), ids, test_ids)


def _columns(dataset: str, features: Any, feature: str | None, label: str | None) -> tuple[str, str]:
    """Names of the columns of samples and targets: as given, else the only ones of a fitting type."""
    classes = [c for c, kind in features.items() if type(kind).__name__ == "ClassLabel"] or [c for c in features if c == "label"]
    label = label or _only(dataset, "label", classes, features)
    wide = [c for c, kind in features.items() if type(kind).__name__ in ("Image", "Array2D", "Array3D", "List", "Sequence")]
    feature = feature or _only(dataset, "feature", [c for c in wide if c != label], features)
    for name, column in (("feature", feature), ("label", label)):
        if column not in features:
            raise complaint(f"{dataset} has no column `{column}` for `{name}` (it has: {', '.join(features)})")
    return feature, label


def _only(dataset: str, name: str, found: list[str], features: Any) -> str:
    if len(found) != 1:
        raise complaint(f"{dataset}: say which column is `{name}` (it has: {', '.join(features)})")
    return found[0]


def _is_id(kind: Any) -> bool:
    """Whole numbers, classes or texts."""
    return getattr(kind, "dtype", "").startswith(("int", "uint", "string", "bool"))


def _array(dataset: str, rows: Any, column: str) -> Array:
    """The column as one array; images as uint8 [N, height, width(, channels)]. Raises SettingError for texts and unequal shapes."""
    values = [np.asarray(value) for value in rows[column]]
    shapes = {value.shape for value in values}
    if len(shapes) > 1:
        raise complaint(f"{dataset}: the samples of `{column}` differ in shape ({', '.join(map(str, sorted(shapes)[:3]))}, ...)")
    return np.stack(values)
