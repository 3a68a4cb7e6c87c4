import math
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from tools import classification, durations, events, merges, models, quadratics, steps
from tools import quick as run
from torch import nn

from fedsim.base.errors import SettingError
from fedsim.base.keys import fold, normal
from fedsim.base.rows import Layout
from fedsim.method.train import Train
from fedsim.schedule import Gossip, Pairwise, Rounds
from fedsim.settings.values import Count, PowerLaw
from fedsim.task.loss import Output
from fedsim.task.task import Task
from fedsim.topology import Complete, Ring, Topology
from fedsim.topology.graphs import Grid, Line, Star
from strategies.dsgd import Dsgd, gammas
from strategies.fedavg import FedAvg

ORDERS = ["adapt_then_combine", "combine_then_adapt"]
B = torch.tensor([[1.0, 0], [-2, 3], [4, 1], [0.5, -5], [2, 2]]).double()
A = torch.tensor([1.0, 2, 1, 0.5, 3]).double()
# A path 0 - 1 - 2 - 3 - 4 with a chord 1 - 3, Metropolis-Hastings weights: 1/(1 + the larger degree), the rest for oneself
DEGREES, EDGES = [1, 3, 2, 3, 1], [(0, 1), (1, 2), (2, 3), (3, 4), (1, 3)]


@dataclass(frozen=True)
class Given(Topology):
    """A matrix by hand."""

    rows: tuple[tuple[float, ...], ...] = ()

    def matrix(self, nodes, step, key):
        return torch.tensor(self.rows, dtype=torch.float64)


@dataclass(frozen=True)
class Apart(Dsgd):
    """Peers that begin at the rows of a matrix."""

    first: tuple[tuple[float, ...], ...] = ()

    def start(self, x, task):
        return {"model": torch.tensor(self.first, dtype=x.dtype)} if self.first else super().start(x, task)


def given(matrix):
    return Given(tuple(map(tuple, matrix.tolist())))


def path():
    w = torch.zeros(5, 5).double()
    for i, j in EDGES:
        w[i, j] = w[j, i] = 1 / (1 + max(DEGREES[i], DEGREES[j]))
    return w + (1 - w.sum(1)).diag()


def matrix(topology, nodes=5):
    return torch.from_numpy(topology.mixing(nodes, 0, fold(0)).weights.toarray())


TOPOLOGIES = [Ring(), Complete(), given(path())]


def dsgd(topology, order="adapt_then_combine", lr=0.1, count=1, **settings):
    return Apart(train=steps(count, lr), schedule=Gossip(topology), order=order, **settings)


def mean_of(x):
    return x.mean(-2, keepdim=True)


# Rounds


@pytest.mark.parametrize("order", ORDERS)
def test_two_rounds_by_hand(order):
    # two peers at 0 with centres 4 and -8, lr 1/2: half of the way each, then the mean of both
    fed = run(quadratics([4.0, -8.0]), dsgd(Ring(), order, lr=0.5), 2)
    if order == "adapt_then_combine":  # (2 - 4)/2 = -1; (3/2 - 9/2)/2
        assert models(fed)[:, :, 0].tolist() == [[0, 0], [-1, -1], [-1.5, -1.5]]
    else:  # 0 + 2, 0 - 4; then the mean -1 and steps (4 - 2)/2, (-8 + 4)/2 from the own old models
        assert models(fed)[:, :, 0].tolist() == [[0, 0], [2, -4], [0, -3]]


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("topology", TOPOLOGIES)
def test_the_mean_moves_by_the_mean_gradient(topology, order):
    x = models(run(quadratics(B, A), dsgd(topology, order), 12))
    gradient = A[:, None] * (x[:-1] - B)
    assert torch.allclose(mean_of(x[1:]), mean_of(x[:-1]) - 0.1 * mean_of(gradient), rtol=1e-13, atol=1e-15)


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("topology", TOPOLOGIES)
def test_the_recursion(topology, order):
    """x <- W (x + u) or W x + u, u from three local steps at the own old model."""
    x = models(run(quadratics(B, A), dsgd(topology, order, count=3), 8))
    w, u = matrix(topology), (1 - (1 - 0.1 * A[:, None]) ** 3) * (B - x[:-1])
    expected = w @ (x[:-1] + u) if order == "adapt_then_combine" else w @ x[:-1] + u
    assert torch.allclose(x[1:], expected, rtol=1e-13, atol=1e-14)


def test_complete_adapt_then_combine_is_fedavg():
    task, train = classification([7, 11, 9, 13]), steps(3, 0.1, batch=4)
    x = models(run(task, Dsgd(train=train, schedule=Gossip(Complete())), 6))
    assert torch.allclose(x, x[:, :1], rtol=0, atol=1e-7)  # all models equal
    same = models(run(task, FedAvg(train=train, schedule=Rounds(cohort=Count()), weights="uniform"), 6))
    assert torch.allclose(x[:, :1], same, atol=1e-6)


@pytest.mark.parametrize("topology", TOPOLOGIES)
def test_without_gradients_peers_come_together_at_the_rate_of_the_matrix(topology):
    w, first = matrix(topology), tuple(map(tuple, B.tolist()))
    rho = torch.linalg.matrix_norm(w - 1 / 5, 2)
    x = models(run(quadratics(B), dsgd(topology, lr=0.0, first=first), 15))
    apart = (x - mean_of(B)).flatten(1).norm(dim=1)
    assert (apart <= apart[0] * rho ** torch.arange(16) * (1 + 1e-12) + 1e-14).all()
    values, vectors = torch.linalg.eigh(w)
    for value, vector in zip(values[:-1], vectors.T[:-1], strict=True):  # along an eigenvector exactly
        x = models(run(quadratics(vector), dsgd(topology, lr=0.0, first=tuple((v,) for v in vector.tolist())), 5))
        assert torch.allclose(x[5, :, 0], value**5 * vector, rtol=0, atol=1e-15)


@pytest.mark.parametrize("topology", TOPOLOGIES)
def test_fixed_points_of_equal_curvature(topology):
    """D-PSGD: ((I - W) + alpha a I) X = alpha a C; adapt then combine: (I - (1 - alpha a) W) X = alpha a W C; the mean is that of C."""
    w, eye, step = matrix(topology), torch.eye(5).double(), 0.1 * 2
    fixed = {
        "combine_then_adapt": torch.linalg.solve(eye - w + step * eye, step * B),
        "adapt_then_combine": torch.linalg.solve(eye - (1 - step) * w, step * w @ B),
    }
    for order, expected in fixed.items():
        x = run(quadratics(B, 2.0), dsgd(topology, order), 160).state["model"]
        assert torch.allclose(x, expected, rtol=0, atol=1e-13)
        assert torch.allclose(mean_of(x), mean_of(B), rtol=0, atol=1e-13)
    # along eigenvector j the deviation is that of C times alpha a / (1 - lambda_j + alpha a)
    values, vectors = torch.linalg.eigh(w)
    factor = (step / (1 - values + step))[:, None]
    assert torch.allclose(vectors.T @ fixed["combine_then_adapt"], factor * (vectors.T @ B), atol=1e-13)


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("schedule", [Gossip(), Gossip(Complete()), Pairwise()])
def test_one_peer_is_plain_sgd(schedule, order):
    task, train = classification([20]), steps(4, 0.2, batch=5, momentum=0.9)
    fed = run(task, Dsgd(train=train, schedule=schedule, order=order), 4, world=durations(1))
    assert torch.equal(models(fed), models(run(task, FedAvg(train=train), 4)))
    assert fed.ledger.bytes == 0


@pytest.mark.parametrize("order", ORDERS)
def test_without_neighbours_each_is_alone(order):
    x = models(run(quadratics(B, A), dsgd(given(torch.eye(5)), order), 9))
    rest = (1 - 0.1 * A[:, None]) ** torch.arange(10)[:, None, None]
    assert torch.allclose(x, (1 - rest) * B, rtol=1e-13)


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("topology", TOPOLOGIES)
def test_peers_alike_are_gradient_descent(topology, order):
    x = models(run(quadratics(B[:1].expand(5, 2), 2.0), dsgd(topology, order), 9))
    assert torch.allclose(x, (1 - 0.8 ** torch.arange(10.0).double())[:, None, None] * B[0], rtol=1e-13, atol=1e-15)


@pytest.mark.parametrize("order", ORDERS)
def test_renaming_peers_and_the_matrix_renames_results(order):
    turn = torch.tensor([3, 0, 4, 1, 2])
    x = models(run(quadratics(B, A), dsgd(given(path()), order), 9))
    y = models(run(quadratics(B[turn], A[turn]), dsgd(given(path()[turn][:, turn]), order), 9))
    assert torch.allclose(y, x[:, turn], rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("lr", [0.33, 0.34])
def test_the_largest_stable_step(lr):
    """D-PSGD needs alpha < (1 + lambda_n) / L, here (1 - 1/3) / 2: the alternating part grows by lambda_n - alpha L a round."""
    x = models(run(quadratics([1.0, -1, 1, -1], 2.0), dsgd(Ring(), "combine_then_adapt", lr), 60))[:, 0, 0]
    factor = -1 / 3 - 2 * lr
    expected = 2 * lr / (1 - factor) * (1 - factor ** torch.arange(61).double())
    assert torch.allclose(x, expected, rtol=1e-11)
    assert ((x[-1] - x[-2]).abs() < x[1].abs()).item() == (lr == 0.33)


def test_a_matrix_of_rows_only_goes_to_the_weighted_mean():
    # star of four, 1/(1 + degree): weights of the limit (1 + d_i) / sum = 4/10, 2/10, 2/10, 2/10
    star = torch.tensor([[1 / 4] * 4, [1 / 2, 1 / 2, 0, 0], [1 / 2, 0, 1 / 2, 0], [1 / 2, 0, 0, 1 / 2]])
    fed = run(quadratics(torch.zeros(4)), dsgd(given(star), lr=0.0, first=((1.0,), (2.0,), (3.0,), (10.0,))), 120)
    assert fed.state["model"][:, 0].tolist() == pytest.approx([3.4] * 4, rel=1e-12)


def test_each_edge_carries_a_model_each_way():
    one = run(quadratics(B), dsgd(Ring()), 1).flight.peer_bytes
    for topology, edges in ((Ring(), 10), (Complete(), 20), (given(path()), 10)):
        fed = run(quadratics(B), dsgd(topology), 3)
        assert (fed.ledger.bytes_cross, fed.ledger.bytes) == (3 * edges * one, 3 * edges * one)


# The papers' recursion: falling rates, consensus weights, annealing


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("topology", TOPOLOGIES)
def test_the_recursion_with_a_falling_rate_and_annealing(topology, order):
    """x <- W x - alpha_k g(x) + gamma_k w: alpha_k = 2 / (k + 20)^0.75 with k from 0, gamma_k = 0.3 / sqrt(k log log k) from round 3 on."""
    rate = PowerLaw(2 / 20**0.75, 0.75, 20)
    strategy = Dsgd(train=Train(steps=1, batch="all", lr=rate), schedule=Gossip(topology), order=order, annealing=0.3)
    x, w = models(run(quadratics(B, A), strategy, 9)), matrix(topology)
    gamma = [0.3 / (max(k, 3) * math.log(math.log(max(k, 3)))) ** 0.5 for k in range(1, 10)]
    assert gamma[0] == gamma[1] == gamma[2] == pytest.approx(0.3 / math.sqrt(3 * 0.0940478), rel=1e-5)
    for k in range(9):
        noise = normal(fold(fold(0, "job", torch.arange(5), k + 1), "annealing"), 2).double()
        u = -2 / (k + 20) ** 0.75 * A[:, None] * (x[k] - B) + gamma[k] * noise
        expected = w @ (x[k] + u) if order == "adapt_then_combine" else w @ x[k] + u
        assert torch.allclose(x[k + 1], expected, rtol=1e-12, atol=1e-13)


def test_annealing_is_normal_noise_of_its_size_for_each_agent_and_round():
    still = replace(dsgd(given(torch.eye(5)), lr=0.0), annealing=2.0)
    x = models(run(quadratics(torch.zeros(5, 4000)), still, 4))
    noise = (x.diff(dim=0) / torch.from_numpy(2 * gammas(np.arange(1, 5)))[:, None, None]).flatten(0, 1)
    assert abs(noise.mean()) < 4 / 80_000**0.5 and abs(noise.std() - 1) < 4 / 160_000**0.5
    assert (noise.corrcoef() - torch.eye(20).double()).abs().max() < 5 / 4000**0.5


@pytest.mark.parametrize("topology", [Star("max_degree"), Line("max_degree"), Grid("max_degree"), Complete("max_degree")])
def test_consensus_weights_are_below_their_limit(topology):
    """`max_degree` is I - beta L with beta = 1 / (1 + d_max) < 2 / lambda_max(L): all eigenvalues but one are inside (-1, 1)."""
    w = matrix(topology, 9)
    graph = (w > 0).double() - torch.eye(9)
    laplacian = graph.sum(1).diag() - graph
    beta = 1 / (1 + float(graph.sum(1).max()))
    assert torch.allclose(w, torch.eye(9).double() - beta * laplacian, atol=1e-15)
    assert beta < 2 / float(torch.linalg.eigvalsh(laplacian)[-1])
    assert (torch.linalg.eigvalsh(w)[:-1].abs() < 1).all()


def saddle(noise, tilt, start, **settings):
    """Four agents on a ring that pull apart along x and share F = (x^2 - y^2) / 2 + y^4 / 4 + tilt y; four samples each, noise +-."""
    corners = noise * torch.tensor([[1.0, 1], [1, -1], [-1, 1], [-1, -1]])
    pull = torch.stack([torch.linspace(-1, 1, 4), torch.zeros(4)], 1)
    x = (pull[:, None] + corners).reshape(-1, 2)

    class Landscape(nn.Module):
        def __init__(self):
            super().__init__()
            self.at = nn.Parameter(torch.tensor(start))

        def forward(self, samples):
            x, y = self.at
            return (x**2 - y**2) / 2 + y**4 / 4 + tilt * y + samples @ self.at

    model, starts = Landscape(), torch.arange(0, 17, 4)
    data = (x, torch.zeros(16), torch.arange(16), starts, x[:1], torch.zeros(1), None)
    task = Task(*data, model, Layout.of(model), torch.tensor(start), Output(), 0)
    train = Train(steps=1, lr=PowerLaw(0.1, 1.0, 200), clip=2.0, batch=settings.pop("batch", 1))
    strategy = Dsgd(train=train, schedule=Gossip(Ring("max_degree")), order="combine_then_adapt", **settings)
    return lambda seed: run(task, strategy, 150, seed=seed).state["model"]


def test_noise_leaves_the_saddle_and_gradient_flow_does_not():
    start = (1.0, 0.0)
    still = saddle(0.5, 0.0, start, batch="all")(0)
    assert (still[:, 1] == 0).all() and still[:, 0].mean().abs() < 1e-4  # converged, to the saddle
    ends = torch.stack([saddle(0.5, 0.0, start)(seed) for seed in range(4)])
    assert (ends[:, :, 1].abs() - 1).abs().max() < 0.25  # each agent of each run is in a well
    assert {*ends[:, 0, 1].sign().tolist()} == {-1.0, 1.0}


def test_annealing_finds_the_deeper_well():
    start = (0.0, 1.0)
    assert (saddle(0.5, 0.3, start)(0)[:, 1] > 0.6).all()
    ends = [saddle(0.5, 0.3, start, annealing=3.0)(seed)[:, 1].mean() for seed in range(5)]
    assert sum(y < 0 for y in ends) >= 4


def test_annealing_off_is_the_plain_method():
    one, other = (models(run(quadratics(B, A), replace(dsgd(Ring()), annealing=c), 3)) for c in (0.0, 1e-9))
    assert torch.equal(one, models(run(quadratics(B, A), dsgd(Ring()), 3))) and not torch.equal(one, other)


# Pairs without a barrier (AD-PSGD)


def pairs(fed):
    """For each mixing its time and the two peers, the finisher first."""
    table = events(fed, "mix")
    return list(zip(table["time"][::2].tolist(), table["node"].reshape(-1, 2).tolist(), strict=True))


@pytest.mark.parametrize("topology", [Ring(), Complete()])
def test_pairs_are_the_recursion_on_snapshots(topology):
    """The finisher averages with one neighbour, then adds the step from the model it had right after its own previous event."""
    tau = (1.0, 1.25, 2.5, 1.75, 3.0)
    fed = run(quadratics(B, A), Dsgd(train=steps(2, 0.1), schedule=Pairwise(topology)), world=durations(*tau), seconds=20)
    way, x = 1 - (1 - 0.1 * A) ** 2, [torch.zeros(5, 2).double()]
    snapshot, due = x[0].clone(), list(tau)
    for time, (i, j) in pairs(fed):
        assert (time, i) == min((due[k], k) for k in range(5))
        assert j != i and (matrix(topology)[i, j] > 0).item()
        now = x[-1].clone()
        now[[i, j]] = (now[i] + now[j]) / 2
        assert torch.allclose(now.mean(0), x[-1].mean(0), rtol=1e-14, atol=1e-16)  # averaging keeps the mean
        now[i] += way[i] * (B[i] - snapshot[i])
        snapshot[i], due[i] = now[i], due[i] + tau[i]
        x.append(now)
    assert torch.allclose(models(fed), torch.stack(x), rtol=1e-12, atol=1e-14)
    assert len(x) - 1 == fed.version == sum(int(20 / t) for t in tau)


def test_pairs_without_gradients_keep_the_mean_and_come_together():
    first = tuple(map(tuple, B.tolist()))
    strategy = replace(dsgd(Ring(), lr=0.0, first=first), schedule=Pairwise(Complete()))
    x = models(run(quadratics(B), strategy, world=durations(1, 1, 1, 1, 1), seconds=40))
    assert torch.allclose(mean_of(x), mean_of(B), rtol=1e-13)
    apart = (x - mean_of(x)).flatten(1).norm(dim=1)
    assert (apart.diff() <= 1e-15).all() and apart[-1] < 1e-9 * apart[0]


def test_the_slow_do_not_hold_up_the_fast():
    fed = run(quadratics(B[:3]), Dsgd(train=steps(), schedule=Pairwise()), world=durations(1, 1, 10), seconds=20)
    senders = [node for _, who in merges(fed) for node, _ in who]
    assert [senders.count(node) for node in range(3)] == [20, 20, 2]
    assert fed.round == 42 // 3  # n merges are a round


def test_pairs_need_time():
    with pytest.raises(SettingError, match="no time"):
        run(quadratics(B), Dsgd(schedule=Pairwise()), 1)
