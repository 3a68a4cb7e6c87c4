"""my_data: data of your own.

A function that returns arrays by name: x [samples, ...] and y [samples] to learn from, x_test and y_test if there are any (else a part
of the samples is held back), and any array with an entry a sample, by which `{name: natural, by: ward}` splits. Its arguments with types
and defaults are its settings. One called `base` is the scenario's folder, a pathlib.Path: `np.load(base / "wards.npz")`.
"""

import numpy as np
from numpy.typing import NDArray


def load(samples: int = 1200, noise: float = 1.0, seed: int = 0) -> dict[str, NDArray[np.generic]]:
    """Three kinds of patients in six wards that see them in unlike shares and measure with unlike offsets; x has four numbers."""
    draw = np.random.default_rng(seed)  # the same numbers each time: a run may be repeated
    ward = draw.integers(0, 6, samples)
    y = np.where(draw.random(samples) < 0.6, ward % 3, draw.integers(0, 3, samples))
    x = 2 * np.eye(3, 4)[y] + 0.2 * ward[:, None] + noise * draw.normal(size=(samples, 4))
    return {"x": x.astype(np.float32), "y": y, "ward": ward}
