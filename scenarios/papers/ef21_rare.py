"""Linear regression in which each feature lies with few nodes."""

import numpy as np


def features(
    nodes: int = 20, block: int = 5, shared: int = 1, rows: int = 120, rough: float = 1.0, noise: float = 0.5, seed: int = 0
) -> dict[str, np.ndarray]:
    """`nodes` blocks of `block` features; node i has blocks i, i + 1, ..., `shared` of them, so that as many nodes have each feature (c).

    Samples are normal where a node has features, else 0; those of node 0 are `rough` times as long. Targets are linear, with noise.
    """
    draw = np.random.default_rng(seed)
    node = np.repeat(np.arange(nodes), rows)
    owner = np.repeat(np.arange(nodes), block)
    x = draw.normal(size=(len(node), nodes * block)) * ((owner - node[:, None]) % nodes < shared)
    x *= np.where(node == 0, rough, 1.0)[:, None]
    y = x @ draw.normal(size=nodes * block) + noise * draw.normal(size=len(node))
    return {"x": x, "y": y, "node": node, "x_test": x[::10], "y_test": y[::10]}
