"""Data sets of the Hugging Face hub, through flwr-datasets, which is imported only here."""

from functools import partial
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
            raise complaint(f"hub:{dataset} has no column `{column}` for `{name}` (it has: {', '.join(features)})")
    return feature, label


def _only(dataset: str, name: str, found: list[str], features: Any) -> str:
    if len(found) != 1:
        raise complaint(f"hub:{dataset}: say which column is `{name}` (it has: {', '.join(features)})")
    return found[0]


def _is_id(kind: Any) -> bool:
    """Whole numbers, classes or texts."""
    return getattr(kind, "dtype", "").startswith(("int", "uint", "string", "bool"))


def _array(dataset: str, rows: Any, column: str) -> Array:
    """The column as one array; images as uint8 [N, height, width(, channels)]. Raises SettingError for texts and unequal shapes."""
    values = [np.asarray(value) for value in rows[column]]
    shapes = {value.shape for value in values}
    if len(shapes) > 1:
        raise complaint(f"hub:{dataset}: the samples of `{column}` differ in shape ({', '.join(map(str, sorted(shapes)[:3]))}, ...)")
    return np.stack(values)
