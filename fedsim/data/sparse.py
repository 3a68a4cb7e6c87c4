"""Sparse tables (CSR: data, indices, indptr, shape) as dense ones."""

from collections.abc import Mapping

import numpy as np

from fedsim.data.arrays import Array, complaint

BUDGET = 2 << 30  # bytes of a dense table


def check_size(rows: int, columns: int, origin: str) -> None:
    """Raises SettingError where rows x columns float32 numbers are over the budget."""
    need = 4 * rows * columns
    if need > BUDGET:
        raise complaint(
            f"{origin}: {rows:,} samples of {columns:,} numbers take {need / 2**30:.1f} GiB, and at most {BUDGET / 2**30:g} GiB are made"
        )


def densified(found: Mapping[str, Array], origin: str) -> dict[str, Array]:
    """The arrays with x for each sparse table (`x_test` for `data_test, indices_test, ...`), float32, all of the widest one's width.

    Raises SettingError where a table is broken or too large.
    """
    parts = ("data", "indices", "indptr", "shape")
    endings = [end for end in ("", "_train", "_test") if {f"{part}{end}" for part in parts[:3]} <= found.keys()]
    tables = {end: {part: found[f"{part}{end}"] for part in parts if f"{part}{end}" in found} for end in endings}
    if not tables:
        return dict(found)
    width = max(_columns(table, origin) for table in tables.values())
    rest = {name: array for name, array in found.items() if name not in {f"{part}{end}" for part in parts for end in endings}}
    return rest | {f"x{end}": _dense(table, width, origin) for end, table in tables.items()}


def _columns(table: Mapping[str, Array], origin: str) -> int:
    indices = table["indices"]
    if indices.dtype.kind not in "iu" or table["indptr"].dtype.kind not in "iu" or indices.ndim != 1:
        raise complaint(f"{origin}: broken sparse table: indices and indptr are no whole numbers in one row")
    used = int(indices.max()) + 1 if indices.size else 0
    shape = table.get("shape")
    if shape is None:
        return used
    if shape.shape != (2,) or int(shape[1]) < used or (indices.size and indices.min() < 0):
        raise complaint(f"{origin}: broken sparse table: indices up to {used - 1}, and shape {shape.tolist()}")
    return int(shape[1])


def _dense(table: Mapping[str, Array], width: int, origin: str) -> Array:
    data, indices, ends = table["data"], table["indices"].astype(np.int64), table["indptr"].astype(np.int64)
    if ends.ndim != 1 or len(ends) < 2 or ends[0] or ends[-1] != len(indices) or (np.diff(ends) < 0).any():
        raise complaint(f"{origin}: broken sparse table: indptr does not rise from 0 to the {len(indices)} indices")
    if data.shape not in ((1,), indices.shape):
        raise complaint(f"{origin}: broken sparse table: {data.size} data for {len(indices)} indices")
    if "shape" in table and int(table["shape"][0]) != len(ends) - 1:
        raise complaint(f"{origin}: broken sparse table: indptr has {len(ends) - 1} rows, shape {table['shape'].tolist()}")
    check_size(len(ends) - 1, width, origin)
    out = np.zeros((len(ends) - 1, width), dtype=np.float32)
    np.add.at(out, (np.repeat(np.arange(len(out)), np.diff(ends)), indices), data.astype(np.float32))
    return out
