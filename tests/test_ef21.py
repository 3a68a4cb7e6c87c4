"""EF21 and its variants against the papers' algorithm boxes in plain NumPy, its guarantees, its sums, bytes, and what is refused."""

# n: nodes, d: parameters

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from launch import refused
from numpy.typing import NDArray
from test_smoothness import linear
from tools import classification, durations, federation, merges, models, quick, run, steps

from fedsim.base.errors import SettingError
from fedsim.base.keys import fold, normal
from fedsim.codecs import Codec, Ef14, Identity, Natural, Qsgd, RandK, Srht, Threshold, TopK, row_bytes
from fedsim.codecs.feedback import Changes
from fedsim.federation.federation import Federation
from fedsim.federation.replicas import Stream
from fedsim.method.theory import contraction_cost
from fedsim.method.train import Train
from fedsim.schedule import Buffered, Rounds
from fedsim.schedule.sampling import BernoulliSampling
from fedsim.settings.values import Count, PerNode
from fedsim.task.loss import Logistic, SquaredError
from fedsim.task.smoothness import smoothness
from fedsim.task.task import Task
from fedsim.world import Faults, World
from strategies.ef21 import Ef21
from strategies.ef21_w import Ef21W
from strategies.fedavg import FedAvg

Array = NDArray[np.float64]
SIZES = [3, 5, 4, 6]
HALF = Rounds(cohort=Count(2))


def squares(sizes: list[int] = SIZES, d: int = 6, rough: float = 3.0) -> Task:
    """Least squares of keyed normal samples, those of the last node `rough` times as long; float64, first model 0."""
    x = normal(fold(1, torch.arange(sum(sizes))), d).double()
    x[-sizes[-1] :] *= rough
    task = linear(x, sizes, SquaredError())
    return replace(task, targets=normal(fold(2, "y"), sum(sizes)).double())


def logistic() -> Task:
    task = linear(normal(fold(1, torch.arange(18)), 6).double() * 2, SIZES, Logistic(penalty="nonconvex"))
    return replace(task, targets=(normal(fold(2, "y"), 18) > 0).long())


def gradients(task: Task, x: Array) -> Array:
    """[n, d] of the nodes' objectives, from their formulas."""
    found = []
    for a, y in zip(
        np.split(task.inputs.numpy(), np.cumsum(SIZES)[:-1]), np.split(task.targets.numpy(), np.cumsum(SIZES)[:-1]), strict=True
    ):
        if isinstance(task.loss, SquaredError):
            found.append(2 * a.T @ (a @ x - y) / len(y))
        else:
            s = 2.0 * y - 1
            found.append(-a.T @ (s / (1 + np.exp(s * (a @ x)))) / len(y) + 0.1 * 2 * x / (1 + x * x) ** 2)
    return np.stack(found)


def objective(task: Task, x: Array) -> float:
    """f(x), uniform over nodes."""
    a, y = task.inputs.numpy(), task.targets.numpy()
    if isinstance(task.loss, SquaredError):
        each, more = (a @ x - y) ** 2, 0.0
    else:
        each, more = np.log1p(np.exp(-(2.0 * y - 1) * (a @ x))), float(0.1 * (x * x / (1 + x * x)).sum())
    return float(np.mean([part.mean() for part in np.split(each, np.cumsum(SIZES)[:-1])])) + more


def hessian(task: Task) -> Array:
    """[d, d] of least squares."""
    found: Array = sum(2 * a.T @ a / len(a) for a in np.split(task.inputs.numpy(), np.cumsum(SIZES)[:-1])) / 4
    return found


def minimum(task: Task) -> Array:
    """Where least squares are least."""
    found: Array = -np.linalg.solve(hessian(task), gradients(task, np.zeros(6)).mean(0))
    return found


def topk(v: Array, k: int) -> Array:
    """The greatest by absolute value, the first of equal ones."""
    out = np.zeros_like(v)
    at = np.argsort(-np.abs(v), kind="stable")[:k]
    out[at] = v[at]
    return out


def box(
    task: Task,
    who: list[list[int]],
    lr: float,
    k: int = 1,
    w: Array | None = None,
    eta: float = 0.0,
    down: int | None = None,
    full: bool = False,
) -> Array:
    """[rounds + 1, d]: the papers' algorithms, node by node. `who` takes part in each round; `w` of EF21-W; `down`: top-k of EF21-BC."""
    n, d = len(SIZES), task.layout.size
    weight = np.full(n, 1 / n) if w is None else w
    scale = np.ones(n) if w is None else 1 / (n * w)
    x, g, v, told, known = np.zeros(d), np.zeros((n, d)), np.zeros(d), np.zeros(d), np.zeros(n, dtype=bool)
    xs = [x]
    for nodes in who:
        slopes = gradients(task, x) * scale[:, None]
        for i in nodes:
            g[i] += slopes[i] - g[i] if full and not known[i] else topk(slopes[i] - g[i], k)
            known[i] = True
        mean = weight @ g
        if down is not None:
            told = told + topk(mean - told, down)
            mean = told
        v = eta * v + mean
        x = x - lr * v
        xs.append(x)
    return np.stack(xs)


def path(fed: Federation) -> Array:
    found: Array = models(fed)[:, 0].numpy()
    return found


def took_part(fed: Federation) -> list[list[int]]:
    return [[node for node, _ in news] for _, news in merges(fed)]


EVERYBODY = [[0, 1, 2, 3]] * 40
VARIANTS: dict[str, tuple[Ef21, dict[str, Any]]] = {
    "EF21": (Ef21(lr=0.01), {}),
    "two numbers": (Ef21(lr=0.01, uplink=TopK(count=2)), {"k": 2}),
    "HB": (Ef21(lr=0.01, momentum=0.5), {"eta": 0.5}),
    "BC": (Ef21(lr=0.01, downlink=TopK(count=2)), {"down": 2}),
    "BC and HB": (Ef21(lr=0.01, downlink=TopK(count=1), momentum=0.5), {"down": 1, "eta": 0.5}),
    "full first": (Ef21(lr=0.01, first="full"), {"full": True}),
    "PP": (Ef21(lr=0.01, schedule=HALF), {}),
    "PP by coins": (Ef21(lr=0.01, schedule=Rounds(sampling=BernoulliSampling(PerNode(0.3)))), {}),
    "PP, BC, full first": (Ef21(lr=0.01, schedule=HALF, first="full", downlink=TopK(count=3)), {"full": True, "down": 3}),
    "W": (Ef21W(lr=0.01), {"w": True}),
    "W, PP": (Ef21W(lr=0.01, schedule=HALF), {"w": True}),
}


@pytest.mark.parametrize("name", VARIANTS)
@pytest.mark.parametrize("task", [squares(), logistic()], ids=["squares", "logistic"])
def test_runs_are_the_algorithm_boxes(name: str, task: Task) -> None:
    strategy, settings = VARIANTS[name]
    if "w" in settings:
        settings = settings | {"w": (smoothness(task).each / smoothness(task).each.sum()).numpy()}
    fed = quick(task, strategy, 40)
    who = took_part(fed)
    assert np.allclose(path(fed), box(task, who, 0.01, **settings), rtol=1e-9, atol=1e-12)
    assert len(who) == 40 and (who == EVERYBODY) == ("PP" not in name)
    assert name != "PP by coins" or [] in who


def test_with_the_identity_it_is_gradient_descent() -> None:
    lr = 0.01
    fed = quick(squares(), Ef21(uplink=Identity(), lr=lr), 30)
    same = quick(squares(), FedAvg(train=steps(1, lr), weights="uniform", schedule=Rounds(cohort=Count())), 30)
    assert np.allclose(path(fed), path(same), rtol=1e-12, atol=1e-14)
    assert quick(squares(), Ef21(uplink=Identity()), 1).state["step"].item() == pytest.approx(1 / smoothness(squares()).whole)


def test_weights_change_nothing_with_one_node_or_equal_ones() -> None:
    """w_i = 1/n; four nodes, so that 1/n is exact."""
    alone = linear(normal(fold(1, torch.arange(5)), 6).double(), [5], SquaredError())
    equal = linear(torch.eye(4).double().repeat(4, 1) * 2, [4] * 4, SquaredError())
    for task in (alone, equal):
        task = replace(task, targets=normal(fold(2, "y"), len(task.targets)).double())
        assert torch.equal(models(quick(task, Ef21(), 20)), models(quick(task, Ef21W(), 20)))


def test_with_top_k_both_take_one_path_at_one_step() -> None:
    """h_i = n w_i g_i: Top1 sends the same change in both. 150 rounds of nodes of which one is 10 times as rough."""
    task = squares(rough=10**0.5)
    one, other = (path(quick(task, strategy, 150)) for strategy in (Ef21(theory="new"), Ef21W()))
    assert np.abs(one - other).max() < 1e-12 and np.abs(one[-1]).max() > 0.01


# Sums


def estimates(fed: Federation) -> torch.Tensor:
    """[n, d]: what the nodes keep."""
    return fed.flight.links.get(np.arange(fed.nodes), fed.flight.fresh_links)["known gradient"]


@pytest.mark.parametrize("name", ["top-k", "w", "rand-k", "natural"])
@pytest.mark.parametrize(
    "world", [World(), World(faults=Faults(crash=PerNode(0.2), lost=PerNode(0.3)))], ids=["all arrive", "some get lost"]
)
def test_the_servers_sum_is_that_of_the_nodes(name: str, world: World) -> None:
    """In float32, under partial participation, and whatever gets lost: both ends have added the same."""
    kinds = {"top-k": Ef21(), "w": Ef21W(), "rand-k": Ef21(uplink=RandK(count=2)), "natural": Ef21(uplink=Natural())}
    strategy = replace(kinds[name], lr=0.05)
    task = classification([4, 9, 6, 5, 8])
    fed = quick(task, replace(strategy, schedule=Rounds(cohort=Count(3))), 60, world=world)
    kept = estimates(fed)
    assert kept.dtype == torch.float64 and fed.ledger.dropped == (0 if world == World() else pytest.approx(79, abs=25))
    assert torch.allclose(fed.state["estimate"], fed.state["weights"] @ kept, rtol=1e-13, atol=1e-14)


def test_changes_of_a_buffer_add_up_also_twice_in_one_merge() -> None:
    strategy = Ef21(lr=0.01, schedule=Buffered(size=3, concurrency=Count()))
    fed = quick(squares(), strategy, 30, world=durations(1, "2.3", "0.7", "0.4"))
    assert any(len(set(who)) < len(who) for who in took_part(fed))
    waiting = fed.waiting.slot  # arrived, and so added by their nodes, but not merged
    more = fed.flight.replies.take(waiting)["gradient"].sum(0) / 4 if len(waiting) else 0
    assert torch.allclose(fed.state["estimate"][0] + more, estimates(fed).mean(0), rtol=1e-12, atol=1e-14)


def test_the_estimate_of_what_stays_is_exact_after_d_over_k_rounds() -> None:
    """x stays where it is (lr 1e-300): six numbers, two a message, are there after three."""
    task = squares()
    off = [
        float(
            (estimates(quick(task, Ef21(lr=1e-300, uplink=TopK(count=2)), rounds)) - torch.from_numpy(gradients(task, np.zeros(6))))
            .abs()
            .max()
        )
        for rounds in (2, 3)
    ]
    assert off[0] > 1e-3 and off[1] < 1e-14


# Theory


def psi(task: Task, fed: Federation, weights: Array, least: float) -> tuple[Array, float]:
    """[rounds + 1, 3]: f(x) - least, G and |grad f(x)|^2 along the run's path; and its step."""
    lr, n = float(fed.state["step"]), len(SIZES)
    g, found = np.zeros((n, task.layout.size)), []
    for x in path(fed):
        slopes = gradients(task, x)
        g = g + np.stack([topk(one, 1) for one in slopes - g])
        away = float((((g - slopes) ** 2).sum(1) / (n * n * weights)).sum())
        found.append((objective(task, x) - least, away, float((slopes.mean(0) ** 2).sum())))
    return np.array(found), lr


@pytest.mark.parametrize("theory", ["old", "new"])
@pytest.mark.parametrize("task", [squares(), logistic()], ids=["squares", "logistic"])
def test_guarantees_hold_at_the_theoretical_step(theory: Any, task: Task) -> None:
    """Mean |grad f|^2 <= 2 (f0 - inf) / (lr T) + G0 / (theta T); Psi = f - inf + lr/theta G never rises, with G weighted in the new one."""
    fed, each = quick(task, Ef21(theory=theory), 200), smoothness(task).each.numpy()
    weights = np.full(4, 1 / 4) if theory == "old" else each / each.sum()
    least = 0.0
    found, lr = psi(task, fed, weights, least)
    theta = 1 - (1 - 1 / 6) ** 0.5
    for T in (1, 10, 100, 200):
        assert found[:T, 2].mean() <= 2 * found[0, 0] / (lr * T) + found[0, 1] / (theta * T)
    lyapunov = found[:, 0] + lr / theta * found[:, 1]
    assert (np.diff(lyapunov) <= 1e-12 * lyapunov[0]).all() and lyapunov[-1] < 0.9 * lyapunov[0]


@pytest.mark.parametrize("theory", ["old", "new"])
def test_the_rate_is_linear_where_steepness_grows_with_the_distance(theory: Any) -> None:
    """Strongly convex: at lr <= 1/(L + sqrt2 L_* xi), f(x_T) - f* <= (1 - lr mu)^T Psi_0. Steps 0.7 of theory's are shorter than that."""
    task = squares()
    mu, best = float(np.linalg.eigvalsh(hessian(task))[0]), minimum(task)
    each, theta = smoothness(task).each.numpy(), 1 - (1 - 1 / 6) ** 0.5
    weights = np.full(4, 1 / 4) if theory == "old" else each / each.sum()
    fed = quick(task, Ef21(theory=theory, multiple=0.7), 300)
    found, lr = psi(task, fed, weights, objective(task, best))
    assert lr <= theta / (2 * mu) and mu > 0
    bound = (1 - lr * mu) ** np.arange(301) * (found[0, 0] + lr / theta * found[0, 1])
    assert (found[:, 0] <= bound + 1e-13).all() and found[-1, 0] < 0.02 * found[0, 0]


def test_clones_take_the_same_path_and_have_the_constant_of_clones() -> None:
    """Node i as N_i nodes, each with sqrt(N / (n N_i)) times its samples: the mean is the same f, and L_i is N / (n N_i) times that."""
    task = squares(rough=10**0.5)
    known = smoothness(task)
    clones = (known.each / known.mean).ceil().long()
    parts = torch.arange(len(task.targets)).split(SIZES)
    kept = torch.cat([part.repeat(int(times)) for part, times in zip(parts, clones, strict=True)])
    size = torch.tensor(SIZES).repeat_interleave(clones)
    scale = (clones.sum() / (4 * clones.double())).sqrt().repeat_interleave(torch.tensor(SIZES) * clones)
    copy = linear(task.inputs[kept] * scale[:, None], size.tolist(), SquaredError())
    copy = replace(copy, targets=task.targets[kept] * scale)
    assert clones.sum() > 4 and smoothness(copy).quadratic_mean == pytest.approx(known.cloned)
    assert known.mean < known.cloned < min(known.quadratic_mean, 2**0.5 * known.mean)
    one, other = (path(quick(of, Ef21(lr=0.01), 40)) for of in (task, copy))
    assert np.allclose(one, other, rtol=1e-9, atol=1e-12)


def test_the_step_for_rare_features_is_proven() -> None:
    """f + lr C/(2 theta) G never rises, with G weighted by w_i ~ L_i, C the largest sum of w_i of nodes with a feature, alpha = k/r."""
    task = squares()
    has = (torch.arange(6) - torch.arange(4)[:, None]) % 6 < 2  # node i has features i and i + 1
    task = replace(task, inputs=task.inputs * has.repeat_interleave(torch.tensor(SIZES), 0))
    known, theta = smoothness(task), 1 - 0.5**0.5
    assert known.features == 2 and known.rare == pytest.approx(float((has.double().T @ known.each).max()) / 4)
    fed = quick(task, Ef21(theory="rare"), 200)
    found, lr = psi(task, fed, (known.each / known.each.sum()).numpy(), 0.0)
    assert lr == pytest.approx(1 / (known.whole + known.rare * contraction_cost(1 / 2)))
    lyapunov = found[:, 0] + lr * known.rare / known.mean / (2 * theta) * found[:, 1]
    assert (np.diff(lyapunov) <= 1e-12 * lyapunov[0]).all()
    old = quick(task, Ef21(), 200)
    assert lr > 4 * float(old.state["step"]) and objective(task, path(fed)[-1]) < objective(task, path(old)[-1])
    assert np.allclose(path(quick(task, Ef21W(theory="rare"), 20)), path(fed)[:21], rtol=1e-9, atol=1e-12)
    with pytest.raises(SettingError, match="is proven for the uplink `topk`, not `randk`; set"):
        federation(task, Ef21(theory="rare", uplink=RandK()), 1)


def test_xi_by_hand() -> None:
    """alpha = 3/4: s = 1/2, xi = 1. alpha = 1: 0. Both forms: (1 + s)/alpha - 1."""
    assert contraction_cost(0.75) == 1 and contraction_cost(1.0) == 0
    for alpha in (0.01, 0.3, 0.9):
        assert contraction_cost(alpha) == pytest.approx((1 + (1 - alpha) ** 0.5) / alpha - 1)


@pytest.mark.parametrize("alpha", [0.05, 0.75, 1.0])
@pytest.mark.parametrize("p", [0.1, 0.5, 0.999999])
def test_partial_participation_costs_the_least_that_the_bound_allows(alpha: float, p: float) -> None:
    """sqrt(B/T) over rho with p theta > (1 - p) rho; at p = 1 it is xi."""
    s = (1 - alpha) ** 0.5
    theta, beta = 1 - s, s * s / (1 - s)
    rho = np.linspace(0, p * theta / (1 - p), 200_001)[1:-1]
    costs = np.sqrt((p * beta + (1 - p) * (1 + 1 / rho)) / (p * theta - (1 - p) * rho))
    assert contraction_cost(alpha, p) == pytest.approx(costs.min(), rel=1e-3) and contraction_cost(alpha, p) <= costs.min() * (1 + 1e-9)
    assert contraction_cost(alpha, 1 - 1e-14) == pytest.approx(contraction_cost(alpha), abs=1e-3)


def test_steps_by_hand() -> None:
    """L = (1, 1, 1, 100), of one number: alpha 1. With three more numbers that nobody has, k = 3 of 4: alpha 3/4, xi 1."""
    rows = torch.zeros(4, 4)
    rows[:, 0] = torch.tensor([0.5, 0.5, 0.5, 50.0]).sqrt()
    task, am, qm = linear(rows, [1] * 4, SquaredError()), 25.75, (10003 / 4) ** 0.5
    found = {}
    sgd, pp = {"batch": 1}, {"schedule": Rounds(cohort=Count(2))}
    cases: dict[str, Ef21] = {
        "old": Ef21(uplink=TopK(count=3)),
        "new": Ef21(uplink=TopK(count=3), theory="new"),
        "w": Ef21W(uplink=TopK(count=3), multiple=4),
        "sgd": Ef21(uplink=TopK(count=3), **sgd),  # type: ignore[arg-type]
        "pp": Ef21(uplink=TopK(count=3), **pp),  # type: ignore[arg-type]
        "pp as if all": Ef21(uplink=TopK(count=3), lr="deterministic", **pp),  # type: ignore[arg-type]
        "randk": Ef21(uplink=RandK(count=3)),
        "momentum": Ef21(uplink=TopK(count=3), lr="deterministic", momentum=0.9),
        "cloned": Ef21(uplink=TopK(count=3), theory="cloned"),
        "rare": Ef21(uplink=TopK(count=3), theory="rare"),
    }
    for name, strategy in cases.items():
        found[name] = 1 / float(quick(task, strategy, 1).state["step"])
    assert found == pytest.approx(
        {
            "old": am + qm,
            "new": am + am,
            "w": 2 * am / 4,
            "sgd": am + qm * contraction_cost(3 / 8),
            "pp": am + qm * contraction_cost(3 / 4, 0.5),
            "pp as if all": am + qm,
            "randk": am + qm,
            "momentum": am + qm,
            "cloned": am + (7 / 16 * (3 + 100**2 / 4)) ** 0.5,  # clones 1, 1, 1, 4
            "rare": am,  # one feature: alpha is 1
        },
        rel=1e-6,
    )
    measured = Ef21().measure(quick(task, Ef21(uplink=TopK(count=3)), 1).state, task)
    assert measured == pytest.approx(
        {
            "step": 1 / (am + qm),
            "smoothness/whole": am,
            "smoothness/mean": am,
            "smoothness/quadratic_mean": qm,
            "smoothness/variance": qm**2 - am**2,
            "smoothness/rare": am,
        }
    )


def test_a_chance_of_one_is_everybody() -> None:
    coins = Rounds(sampling=BernoulliSampling(PerNode(1.0)))
    one, other = quick(squares(), Ef21(schedule=coins), 15), quick(squares(), Ef21(), 15)
    assert np.array_equal(path(one), path(other)) and torch.equal(one.state["step"], other.state["step"])


def test_minibatches_come_near() -> None:
    """EF21-SGD from the same start: on average over rounds nearer than where it began, and not the path of full gradients."""
    task = squares()
    fed, full = (quick(task, Ef21(lr=0.01, batch=batch), 200) for batch in (2, "all"))
    least = objective(task, minimum(task))
    far = [objective(task, x) - least for x in path(fed)]
    assert np.mean(far[100:]) < 0.1 * far[0] and not np.allclose(path(fed), path(full))


# Bytes and grouping


def test_bytes_count_places_packed_in_bits() -> None:
    """Ten of 1,000 numbers: 40 bytes of values and 100 bits of places; the model goes down as it is."""
    task = linear(normal(fold(1, torch.arange(3)), 1000).double(), [1] * 3, SquaredError())
    task = replace(task, inputs=task.inputs.float(), targets=task.targets.float(), init=task.init.float(), model=task.model.float())
    fed = quick(task, Ef21(uplink=TopK(count=10), lr=0.1), 4)
    wire = TopK(count=10).encode({"gradient": torch.zeros(1, 1000)}, {}, torch.zeros(1, dtype=torch.int64))
    assert sum(rows[0].nbytes for rows in wire.values()) == 40 + 13
    assert fed.ledger.bytes_up == 4 * 3 * row_bytes(wire)
    assert fed.ledger.bytes_down == 4 * 3 * row_bytes({"model": torch.zeros(1, 1000)})
    full = quick(task, Ef21(uplink=TopK(count=10), lr=0.1, first="full"), 4)
    whole = row_bytes({"whole gradient": torch.zeros(1, 1000)})
    assert full.ledger.bytes_up == 3 * whole + 3 * 3 * row_bytes(wire)


def test_both_directions_cost_what_nodes_have_not_heard() -> None:
    """Nobody is told of x_0; then a packet for each round missed, or x and g where that is less."""
    stream = Stream(3, packet=10, whole=35)
    assert stream.billed(np.array([0, 1]), 0, np.zeros(1)).tolist() == [0, 0]
    assert stream.billed(np.array([0]), 1, np.zeros(1)).tolist() == [10]
    assert stream.billed(np.array([0, 1, 2]), 3, np.zeros(1)).tolist() == [20, 30, 30]
    assert stream.billed(np.array([2]), 9, np.zeros(1)).tolist() == [35]
    fed = quick(squares(), Ef21(lr=0.01, downlink=TopK(count=1)), 5)
    wire = TopK(count=1).encode({"gradient": torch.zeros(1, 6, dtype=torch.float64)}, {}, torch.zeros(1, dtype=torch.int64))
    assert fed.ledger.bytes_down == 4 * 4 * row_bytes(wire)


@pytest.mark.parametrize(
    "strategy",
    [
        Ef21(lr=0.1, uplink=RandK(count=4), schedule=Rounds(cohort=Count(3))),
        Ef21(lr=0.1, batch=2, uplink=Qsgd(bucket=8), downlink=RandK(count=3), first="full"),
        Ef21W(lr=0.1, schedule=Rounds(cohort=Count(3)), downlink=Natural()),
    ],
    ids=repr,
)
def test_runs_do_not_depend_on_what_is_computed_together(strategy: Ef21) -> None:
    task = classification([4, 9, 6, 5, 8])
    one, other = (run(task, strategy, 6, chunk=chunk) for chunk in (1, 5))
    assert torch.equal(models(one), models(other)) and one.state["model"].isfinite().all()
    assert one.ledger.totals() == other.ledger.totals()


@pytest.mark.parametrize("first", ["compressed", "full"])
@pytest.mark.parametrize("inner", [TopK(count=2), Natural(), RandK(count=3)], ids=repr)
def test_both_ends_of_a_link_add_the_same(first: Any, inner: Codec) -> None:
    """`carry` is what encoding and decoding give, message by message; the estimate is the sum of all that arrived."""
    codec, total = Changes(inner, first=first), torch.zeros(3, 7, dtype=torch.float64)
    parts = {"gradient": normal(fold(5, torch.arange(3)), 7)}
    memory, key = codec.init(parts), fold(6, torch.arange(3))
    for turn in range(4):
        came, after = codec.carry(parts, memory, key)
        heard, also = codec.decode(codec.encode(parts, memory, key), memory, key)
        assert all(torch.equal(came[name], heard[name]) for name in came) and all(torch.equal(after[name], also[name]) for name in after)
        assert turn or torch.equal(came["gradient"], parts["gradient"]) == (first == "full")
        total, memory = total + came["gradient"], after
    assert torch.equal(memory["known gradient"], total)


# Bad input


REFUSED: dict[str, tuple[Any, str]] = {
    "training": (lambda: Ef21(train=Train(steps=3)), "train: `ef21` does not train; it has `lr` and `batch` of its own, under `strategy`"),
    "feedback twice": (lambda: Ef21(uplink=Ef14()), "uplink: `ef21` is this kind of feedback itself; name the codec that is within `ef14`"),
    "a fixed sketch": (lambda: Ef21(uplink=Srht(fresh=False)), "uplink: `srht` with `fresh: false`"),
    "a buffer": (lambda: Ef21(schedule=Buffered()), "strategy.lr: theory has no step with schedule `buffered`; `deterministic`"),
    "momentum": (lambda: Ef21(momentum=0.9), "strategy.lr: theory has no step with momentum"),
    "both ways": (lambda: Ef21(downlink=TopK()), "strategy.lr: theory has no step with a lossy downlink"),
    "both ways, buffered": (lambda: Ef21(lr=0.1, downlink=TopK(), schedule=Buffered()), "downlink: needs `rounds`"),
    "a number's multiple": (lambda: Ef21(lr=0.1, multiple=2), "strategy.multiple: is about the step of theory, and `lr` is a number"),
    "a number's theory": (lambda: Ef21(lr=0.1, theory="new"), "strategy.theory: is about the step of theory, and `lr` is a number"),
    "full, buffered": (lambda: Ef21(lr=0.1, first="full", schedule=Buffered()), "strategy.first: needs `rounds`"),
}
UNKNOWN: dict[str, tuple[Ef21, World, str]] = {
    "alpha": (Ef21(uplink=Threshold()), World(), "strategy.lr: theory needs the alpha of `threshold`, which is not known"),
    "a sample with minibatches": (Ef21(batch=2, schedule=HALF), World(), "theory has no step for minibatches where nodes are absent"),
    "unequal chances": (
        Ef21(schedule=Rounds(sampling=BernoulliSampling(PerNode((0.9, 0.5, 0.1, 0.2))))),
        World(),
        "theory's step needs nodes that all take part with one known chance: theirs differ",
    ),
    "lost messages": (
        Ef21(),
        World(faults=Faults(lost=PerNode(0.1))),
        "all take part with one known chance: frequencies are unknown",
    ),
    "who comes first": (Ef21(schedule=Rounds(cohort=Count(), wait_for=2)), World(), "all take part with one known chance"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_settings_that_have_no_meaning_together_are_refused(name: str) -> None:
    make, words = REFUSED[name]
    with pytest.raises(SettingError) as error:
        make()
    assert words in str(error.value)


@pytest.mark.parametrize("name", UNKNOWN)
def test_where_theory_has_no_step_it_says_so(name: str) -> None:
    strategy, world, words = UNKNOWN[name]
    with pytest.raises(SettingError) as error:
        federation(squares(), strategy, 1, world=world)
    assert words in str(error.value) and "set" in str(error.value)
    federation(squares(), replace(strategy, lr="deterministic" if name != "alpha" else 0.1), 1, world=world)


SCENARIO = """task: {data: digits, partition: {name: iid, nodes: 4}, model: {name: mlp, hidden: [3]}}
stop: {rounds: 1}
"""
LINES = {
    "strategy: ef21": "strategy.lr: theory: smoothness constants are known for the model `logistic` with the loss",
    "strategy: {name: ef21_w, lr: 0.1}": "strategy: `ef21_w` weighs nodes by how smooth they are: smoothness constants are known for",
    "strategy: {name: ef21, lr: 0.1}\nuplink: {name: topk, count: 500}": "4:9: uplink: `count: 500` of a part of 235 numbers",
    "strategy: {name: ef21, lr: 0.1}\ndownlink: {name: topk, count: 500}": "downlink: `count: 500` of a part of 235 numbers",
    "strategy: {name: ef21, lr: 0.1}\ntrain: {steps: 2}": "train: `ef21` does not train",
    "strategy: {name: ef21, lr: 0}": "strategy.lr",
    "strategy: {name: ef21_w, theory: old}": "strategy.theory",
    "strategy: {name: ef21, lr: 0.1}\nschedule: gossip": "`ef21` merges at a server",
    "strategy: {name: ef21, lr: 0.1}\nprivacy: {clip: 1, noise: 1, delta: 1e-3}": "`privacy` lets out noisy means only",
}


@pytest.mark.parametrize("line", LINES)
def test_scenarios_that_make_no_sense_end_before_anything_starts(line: str, folder: Path) -> None:
    (folder / "bad.yaml").write_text(SCENARIO + line + "\n")
    assert LINES[line] in refused("run", "bad.yaml")
