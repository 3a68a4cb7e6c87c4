"""`fedsim bench`: what fedsim promises, measured on this machine. One module a theme; each measurement gives one figure or several."""

import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from time import monotonic
from typing import Any

from fedsim.base.errors import FedsimError
from fedsim.base.text import count, counted, duration
from fedsim.bench.figures import Figure, say

Measurement = Callable[[int], list[Figure]]  # takes the number of trials
EACH = 18.0  # seconds of a measurement with 7 trials, in the mean, on two quiet cores: all of them some ten minutes


def measurements() -> Mapping[str, Measurement]:
    """All of them by name, in the order in which they are made."""
    from fedsim.bench import comparing, deployed, host, methods, peers, plain, replicas, scale, users
    from fedsim.bench.cluster import cluster
    from fedsim.bench.codecs import codecs
    from fedsim.bench.edges import hierarchy
    from fedsim.bench.flower import flower
    from fedsim.bench.tracking import tracked
    from fedsim.bench.transport import transport

    return {
        **plain.measurements(),
        **methods.measurements(),
        **peers.measurements(),
        "hierarchy": hierarchy,
        **replicas.measurements(),
        **users.measurements(),
        "asynchronous": scale.asynchronous,
        "million": scale.million,
        "population": scale.population,
        "events-100": partial(scale.events, 100),
        "events-1000": partial(scale.events, 1000),
        "checkpoints": host.checkpoints,
        "first-round": host.first_round,
        "starts": host.starts,
        "sweeps": host.sweeps,
        "six-seeds": host.six_seeds,
        "compares": comparing.compares,
        "tracked": tracked,
        **({"ray": cluster} if find_spec("ray") else {}),
        "codecs": codecs,
        "deployed": deployed.deployed,
        "flower": flower,
        "transport": transport,
    }


def main(names: Sequence[str], as_json: bool, trials: int) -> None:
    """Makes the named measurements, or all: says how long that takes, then a line a figure, as each comes; JSON where wanted.

    Raises FedsimError for a name that is none.
    """
    from fedsim.bench import gpu

    usual = measurements()
    known = {**usual, "gpu": gpu.gpu}
    for name in names:
        if name not in known:
            raise FedsimError(f"no measurement `{name}`; there are {', '.join(known)}")
    if "gpu" in names:
        gpu.need()
    due = list(names or usual)
    head = f"{counted(len(due), 'measurement')}, about {duration(round(len(due) * EACH * (trials + 1) / 8, -1))} on two quiet cores"
    if as_json:
        say(head)
    else:
        print(f"{head}\n{'':52}{'fedsim':>10}{'other':>10}{'ratio':>8}  target", flush=True)
    began = monotonic()
    for done, name in enumerate(due, 1):
        figures = known[name](trials)
        say()
        for figure in figures:
            print(json.dumps(asdict(figure)) if as_json else _row(figure), flush=True)
        say(f"{done} of {len(due)} done, about {duration((len(due) - done) * (monotonic() - began) / done)} left")
    say()


def _row(one: Figure) -> str:
    target = "-" if one.target is None else f"{one.target:g}, {'reached' if one.ratio >= one.target else 'missed'}"
    ours, other = (count(side) if side >= 100 else f"{side:.3g}" for side in (one.ours, one.other))
    return f"{one.name:52}{ours:>10}{other:>10}{one.ratio:8.2f}  {target}"


def images() -> dict[str, Any]:
    """60,000 MNIST images from FEDSIM_DATA if they are there, else random numbers of the same shape."""
    import numpy as np

    file = Path(os.environ.get("FEDSIM_DATA", "")) / "mnist" / "mnist.npz"
    if file.exists():
        with np.load(file) as arrays:
            return {"x": arrays["x_train"], "y": arrays["y_train"], "x_test": arrays["x_test"], "y_test": arrays["y_test"]}
    lot = np.random.default_rng(0)
    x, y = lot.integers(0, 256, (61_000, 28, 28), dtype=np.uint8), lot.integers(0, 10, 61_000)
    return {"x": x[:60_000], "y": y[:60_000], "x_test": x[60_000:], "y_test": y[60_000:]}
