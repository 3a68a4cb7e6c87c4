"""FedLD: margin control and principal directions, apart and together."""

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from launch import TEXT, refused, resumed, same, simulate, write
from tools import classification, federation, models, quadratics, steps
from tools import quick as run
from torch import Tensor

from fedsim.base.errors import SettingError
from fedsim.base.keys import fold, normal
from fedsim.base.rows import Layout
from fedsim.gradients.looped import Looped
from fedsim.gradients.samples import Samples
from fedsim.gradients.stacked import Stacked
from fedsim.method.average import Mean
from fedsim.method.inbox import Inbox
from fedsim.schedule import Gossip, Rounds
from fedsim.settings.values import Count
from strategies.fedavg import FedAvg
from strategies.fedld import FedLd, revised, spectrum

ALL = Rounds(cohort=Count())
ONE = Layout({"w": (30,)})


def draw(*words: Any, n: int = 5, d: int = 30) -> Tensor:
    """Gaussian updates [n, d]."""
    return normal(fold(0, *words, torch.arange(n)), d).double()


def message(g: Tensor, layout: Layout = ONE, weight: Tensor | None = None) -> Inbox:
    n = len(g)
    return Inbox({"update": g}, torch.full((n,), 1 / n).to(g) if weight is None else weight, torch.arange(n), torch.zeros(n), layout)


def direction(g: Tensor, layout: Layout | None = None, weight: Tensor | None = None, **settings: Any) -> Tensor:
    """u [d] of updates g [n, d], every tensor having moved before."""
    layout = Layout({"w": (g.shape[1],)}) if layout is None else layout
    state = {"model": torch.zeros(1, g.shape[1]).to(g), "moved": torch.ones(1, len(layout.names)).to(g)}
    return FedLd(**settings).merge(state, message(g, layout, weight))["model"][0]


def slow(g: Tensor, keep: float = 0.8, calibrated: bool = False) -> tuple[list[Tensor], list[Tensor], list[float]]:
    """r_i, W_j and s_j by the steps 1 to 4 of the authors' server, one client and one direction after the other."""
    n = len(g)
    u, s, _ = torch.linalg.svd(g @ g.mT / n)
    directions = [g.mT @ u[:, j] for j in range(n)]
    out = []
    for i in range(n):
        r = torch.zeros(g.shape[1]).double()
        for j in range(int(n * keep)):
            w = directions[j]
            if calibrated and sum(float(other @ w) < 0 for other in g) > n / 2:
                w = -w
            part = w if calibrated else (g[i] @ w) / (w @ w) * w
            r += part / part.norm() * (s[j] / s.sum()) * g[i].norm()
        out.append(r)
    return out, directions, s.tolist()


def close(ours: Tensor, theirs: Tensor, error: float = 1e-11) -> bool:
    return bool((ours - theirs).norm() <= error * (1e-30 + theirs.norm()))


# The server


@pytest.mark.parametrize("keep", [0.2, 0.5, 0.8, 1.0])
@pytest.mark.parametrize("orient", ["none", "majority"])
def test_the_closed_form_is_the_authors_steps(keep: float, orient: Any) -> None:
    for case in range(5):
        g = draw("steps", case) * torch.tensor([1.0, 0.2, 3, 1, 0.7]).double()[:, None]
        r, _, _ = slow(g, keep, orient == "majority")
        assert close(direction(g, keep=keep, orient=orient), torch.stack(r).mean(0))


def test_a_client_counts_as_many_equal_ones_by_samples() -> None:
    g, counts = draw("weights", n=3), torch.tensor([1, 3, 2])
    weighted = direction(g, weight=counts.double() / 6, weights="samples", keep=1.0)
    assert close(weighted, direction(g.repeat_interleave(counts, 0), keep=1.0))
    assert not close(weighted, direction(g, keep=1.0), 0.1)  # the authors' sample weights cancel
    assert torch.equal(direction(g, weight=counts.double() / 6), direction(g))


def test_two_clients_by_hand() -> None:
    # (3, 0) and (0, 1): W are the axes, s = 9/2 and 1/2, so r_1 = 9/10 (3, 0) and r_2 = 1/10 (0, 1); a right angle counts nothing
    g = torch.tensor([[3.0, 0], [0, 1]]).double()
    torch.testing.assert_close(direction(g, keep=1.0), torch.tensor([1.35, 0.05]).double())
    torch.testing.assert_close(direction(g, keep=0.9), torch.tensor([1.35, 0]).double())  # k = 1
    torch.testing.assert_close(direction(g, keep=0.1), torch.tensor([1.35, 0]).double())  # at least 1
    # all against the axis that most follow: of two halves none is followed
    g = torch.tensor([[2.0, 0], [2, 0], [-2, 0]]).double()
    torch.testing.assert_close(direction(g), torch.tensor([2 / 3, 0]).double())
    torch.testing.assert_close(direction(g, orient="majority"), torch.tensor([2.0, 0]).double())
    torch.testing.assert_close(direction(g[1:], orient="majority"), torch.zeros(2).double())


@pytest.mark.parametrize("keep", [0.4, 0.8, 1.0])
def test_all_revised_updates_shrink_by_one_ratio(keep: float) -> None:
    g, p = draw("shrink") * torch.tensor([1.0, 0.2, 3, 1, 0.7]).double()[:, None], torch.full((5,), 0.2, dtype=torch.float64)
    r = revised((g @ g.mT)[None], p, keep, "none")[0] @ g
    theirs, _, s = slow(g, keep)
    assert all(close(one, other) for one, other in zip(r, theirs, strict=True))
    ratio = sum((one / sum(s)) ** 2 for one in s[: int(5 * keep)]) ** 0.5
    assert (r.norm(dim=1) / g.norm(dim=1)).tolist() == pytest.approx([ratio] * 5, rel=1e-10)
    assert direction(g, keep=keep).norm() <= ratio * g.norm(dim=1).mean() <= g.norm(dim=1).mean()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("keep", [0.1, 0.8, 1.0])
def test_equal_clients_give_their_update(dtype: torch.dtype, keep: float) -> None:
    g = draw("equal", n=1).to(dtype)
    for n in (1, 2, 5, 12):
        u = direction(g.repeat(n, 1), keep=keep)
        assert u.dtype == dtype and close(u, g[0], 1e-6 if dtype == torch.float32 else 1e-14)


def test_nearly_equal_clients_lose_only_the_share_of_the_rest() -> None:
    g = draw("near", n=1) + 0.03 * draw("noise")
    _, _, s = slow(g)
    u, mean = direction(g), g.mean(0)
    assert float(u @ mean / (u.norm() * mean.norm())) > 1 - 1e-6
    assert float(u.norm() / mean.norm()) == pytest.approx(s[0] / sum(s), abs=1e-3)
    assert 0.99 < s[0] / sum(s) < 1


numbers = st.integers(0, 1000)


@given(case=numbers, factor=st.floats(1e-3, 1e3), orient=st.sampled_from(["none", "majority"]))
def test_it_scales_and_turns_with_the_updates(case: int, factor: float, orient: Any) -> None:
    g = draw("turn", case)
    u = direction(g, orient=orient)
    assert close(direction(g * factor, orient=orient), factor * u, 1e-8)
    assert close(direction(-g, orient=orient), -u, 1e-8)
    turn, _ = torch.linalg.qr(draw("rotation", case, n=30))
    assert close(direction(g @ turn.mT, orient=orient), turn @ u, 1e-7)
    order = torch.argsort(draw("order", case, n=1, d=5)[0])
    assert close(direction(g[order], orient=orient), u, 1e-7)


@given(case=numbers)
def test_it_lies_in_the_kept_directions(case: int) -> None:
    g = draw("span", case)
    _, w, s = slow(g)
    u = direction(g)
    inside = sum((u @ one) / (one @ one) * one for one in w[:4])
    assert isinstance(inside, Tensor) and close(inside, u, 1e-8)
    # our directions: |W_j|^2 = n s_j of the authors' scale, at right angles
    found, a = spectrum((g @ g.mT)[None], torch.full((5,), 0.2, dtype=torch.float64))
    assert found[0].tolist() == pytest.approx(s, rel=1e-9)
    ours = a[0].mT @ g * 5**0.5
    torch.testing.assert_close(ours @ ours.mT, torch.diag(5 * found[0]), rtol=1e-9, atol=1e-9)


def test_opposite_clients_cancel() -> None:
    g = draw("opposite", n=1)[0]
    assert direction(torch.stack([g, -g])).norm() < 1e-14 * g.norm()


def test_the_step_of_unlike_clients_is_less_than_half() -> None:
    ratios = torch.tensor([float(direction(g).norm() / g.mean(0).norm()) for g in (draw("random", case) for case in range(50))])
    assert 0.35 < ratios.mean() < 0.55


def test_tensors_are_aggregated_one_by_one() -> None:
    layout = Layout({"weight": (4, 5), "bias": (4,), "scale": (1,), "still": (2,)})
    g = draw("tensors", d=27)
    g[:, 25:] = 0
    u = direction(g, layout)
    assert torch.equal(u[:20], direction(g[:, :20])) and torch.equal(u[20:24], direction(g[:, 20:24]))
    assert float(u[24]) == pytest.approx(float(g[:, 24].mean()), rel=1e-12)
    assert u[25:].tolist() == [0, 0]
    assert float(direction(g, layout, orient="majority")[24]) == pytest.approx(float(g[:, 24].mean()), rel=1e-12)
    assert not close(direction(g), u, 1e-3)


def way(*updates: Tensor, layout: Layout = ONE) -> Tensor:
    """Steps [rounds, d] of a server that merges these updates, one [n, d] after the other."""
    d = updates[0].shape[1]
    strategy, seen = FedLd(), [torch.zeros(d).double()]
    state = {"model": torch.zeros(1, d).double(), "moved": torch.zeros(1, len(layout.names)).double()}
    for g in updates:
        state = strategy.merge(state, message(g, layout))
        seen.append(state["model"][0].clone())
    return torch.stack(seen).diff(dim=0)


def test_the_first_step_of_each_tensor_is_the_mean() -> None:
    layout, g = Layout({"early": (20,), "late": (10,)}), [draw("first", turn) for turn in range(3)]
    g[0][:, 20:] = 0
    first, second, third = way(*g, layout=layout)
    assert close(first, g[0].mean(0), 1e-14)
    assert close(second[20:], g[1][:, 20:].mean(0), 1e-14) and close(second[:20], direction(g[1][:, :20]))
    assert close(third, direction(g[2], layout))


def test_the_authors_two_rounds_of_means_follow_from_their_zero_rate_alone() -> None:
    first, second, third = way(torch.zeros(5, 30).double(), draw("second"), draw("third"))
    assert first.tolist() == [0] * 30
    assert close(second, draw("second").mean(0), 1e-14) and close(third, direction(draw("third")))


def test_round_one_learns_and_is_fedavg_s() -> None:
    task, train = classification([9, 12, 7, 20]), steps(3, 0.1, batch=4)
    ours = models(run(task, FedLd(train=train, schedule=ALL, margin=0), 2))[:, 0]
    theirs = models(run(task, FedAvg(train=train, schedule=ALL, weights="uniform"), 2))[:, 0]
    assert not close(ours[1], ours[0], 1e-2) and close(ours[1], theirs[1], 1e-6) and not close(ours[2], theirs[2], 1e-4)


def test_without_both_parts_it_is_uniform_fedavg_in_bits() -> None:
    task, train = classification([7, 11, 9, 13]), steps(5, 0.1, batch=4, momentum=0.5)
    ours = run(task, FedLd(train=train, schedule=Rounds(Count(3)), margin=0, aggregate="mean"), 3)
    assert torch.equal(models(ours), models(run(task, FedAvg(train=train, schedule=Rounds(Count(3)), weights="uniform"), 3)))
    assert ours.state.keys() == {"model"}


def test_a_cohort_of_one_moves_the_server_to_its_client() -> None:
    task, train = classification([7, 11, 9]), steps(4, 0.1)
    ours = models(run(task, FedLd(train=train, schedule=Rounds(Count(1)), margin=0), 4))
    theirs = models(run(task, FedAvg(train=train, schedule=Rounds(Count(1))), 4))
    torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-7)


def test_a_common_optimum_is_a_fixed_point_and_is_reached() -> None:
    # F_i = |x - b|^2 / 2 with one b: all updates are (1 - (1 - 1/10)^3) (b - x), and so is the step
    fed = run(quadratics([[1.0, -2, 3]] * 4), FedLd(train=steps(3, 0.1), schedule=ALL, margin=0), 60)
    x = models(fed)[:, 0]
    b = torch.tensor([1.0, -2, 3]).double()
    torch.testing.assert_close(x[1:40] - b, 0.9**3 * (x[:39] - b), rtol=1e-9, atol=1e-13)
    assert close(x[-1], b, 1e-7)


def test_what_diverges_shows_in_the_model() -> None:
    g = draw("nan")
    g[2, 3] = float("nan")
    assert direction(g)[3].isnan()


@pytest.mark.gpu
def test_a_gpu_gives_the_same() -> None:
    g = draw("cuda", n=12, d=5000).float()
    weight = torch.full((12,), 1 / 12)
    for orient in ("none", "majority"):
        there = direction(g.cuda(), weight=weight.cuda(), orient=orient)
        torch.testing.assert_close(there.cpu(), direction(g, orient=orient), rtol=1e-5, atol=1e-6)


# Margin control


def term(outputs: Tensor, weight: Tensor, margin: float = 1.0) -> Tensor:
    """The regularizer alone."""
    task, targets = classification([4]), torch.zeros(len(outputs), dtype=torch.int64)
    return FedLd(margin=margin).loss(task, outputs, targets, weight) - FedAvg().loss(task, outputs, targets, weight)


def even(size: int) -> Tensor:
    return torch.full((size,), 1 / size, dtype=torch.float64)


def test_uniform_and_certain_predictions_by_hand() -> None:
    # B = 50, C = 2: |P|^2 = 25 when uniform, 50 when certain
    assert term(torch.full((50, 2), 3.0).double(), even(50), 0.5).item() == pytest.approx(0.5 * torch.tensor(26.0).log().item())
    certain = torch.tensor([[40.0, 0]]).double().expand(50, 2)
    assert term(certain, even(50)).item() == pytest.approx(torch.tensor(51.0).log().item())


def test_twice_the_batch_is_not_twice_the_term() -> None:
    # one sample with P = (1/2, 1/2): ln(1 + 1/2), and ln(1 + 1) for two
    one, two = (term(torch.zeros(size, 2).double(), even(size)).item() for size in (1, 2))
    assert (one, two) == pytest.approx((torch.tensor(1.5).log().item(), torch.tensor(2.0).log().item()))
    assert two < 2 * one


def test_padding_counts_nothing() -> None:
    outputs = draw("outputs", n=5, d=3)
    padded = torch.cat([even(3), torch.zeros(2).double()])
    assert term(outputs, padded).item() == pytest.approx(term(outputs[:3], even(3)).item(), rel=1e-12)


def test_the_slope_is_that_of_finite_differences_and_flat_where_it_should_be() -> None:
    weight = torch.cat([even(4), torch.zeros(1).double()])
    outputs = draw("slope", n=5, d=3).requires_grad_()
    assert torch.autograd.gradcheck(lambda z: term(z, weight), outputs)
    assert torch.autograd.grad(term(outputs, weight), outputs)[0][4].tolist() == [0, 0, 0]
    for flat in (torch.zeros(4, 3), 60 * torch.eye(3)[[0, 1, 2, 0]]):
        z = flat.double().requires_grad_()
        assert torch.autograd.grad(term(z, even(4)), z)[0].abs().max() < 1e-15


def test_plans_agree_on_short_batches() -> None:
    task = classification([5, 3, 9, 2])
    x = task.init + 0.1 * normal(fold(1, torch.arange(3)), task.layout.size)
    index = torch.arange(12).view(3, 4)
    weight = torch.tensor([[1, 1, 1, 1], [1, 1, 1, 0], [1, 0, 0, 0]]) / torch.tensor([[4.0], [3], [1]])
    samples, strategy = Samples(task.inputs[index], task.targets[index], weight), FedLd(margin=0.7)
    looped, stacked = Looped(task, strategy.loss, 4), Stacked(task, strategy.loss, 4, exact=True)
    torch.testing.assert_close(stacked.gradient(x, samples), looped.gradient(x, samples), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(stacked.loss(x, samples), looped.loss(x, samples))
    y = x.clone()
    stacked.descend(y, 0.5, samples)
    torch.testing.assert_close(y, x - 0.5 * looped.gradient(x, samples), rtol=1e-5, atol=1e-6)
    short = Samples(task.inputs[index[1:2, :3]], task.targets[index[1:2, :3]], weight[1:2, :3])
    torch.testing.assert_close(looped.gradient(x[1:2], short), looped.gradient(x, samples)[1:2], rtol=1e-5, atol=1e-7)


def test_runs_of_both_plans_agree_and_margin_control_lowers_confidence() -> None:
    task = classification([7, 11, 9, 13])

    def end(margin: float, plan: str = "looped") -> Tensor:
        fed = federation(task, FedLd(train=steps(20, 0.3, batch=4), schedule=ALL, margin=margin), 5, plan=plan)
        fed.run()
        return fed.state["model"][0]

    torch.testing.assert_close(end(1.0), end(1.0, "stacked"), rtol=1e-4, atol=1e-5)

    def confidence(x: Tensor) -> Tensor:
        parts = task.layout.views(x)
        return (task.inputs @ parts["weight"].mT + parts["bias"]).softmax(-1).amax(-1).mean()

    assert confidence(end(1.0)) < confidence(end(0.0)) - 0.01


# From a scenario


@pytest.mark.parametrize("schedule", ["{name: buffered, size: 3, concurrency: 5}", "{name: ticks, every: 1500 ms}"])
def test_it_works_in_every_schedule_of_a_server(folder: Path, schedule: str) -> None:
    text = TEXT.replace("{name: rounds, cohort: 4}", schedule).replace("fedavg", "fedld")
    whole = simulate(folder, text=text)
    assert whole.info["model"] != simulate(folder, "strategy.aggregate=mean", text=text, into="mean").info["model"]
    assert whole.info["model"] != simulate(folder, "strategy.margin=0", text=text, into="plain").info["model"]


def test_it_goes_on_to_the_same_bits(folder: Path) -> None:
    text = TEXT.replace("fedavg", "fedld")
    simulate(folder, "stop.rounds=2", text=text, into="half")
    same(simulate(folder, text=text), resumed(folder / "half", "stop.rounds=4"))


def test_it_needs_classes_a_server_and_one_average(folder: Path) -> None:
    with pytest.raises(SettingError, match=r"margin control needs samples of one class each"):
        federation(quadratics([1.0, 2]), FedLd(schedule=ALL))
    with pytest.raises(SettingError, match="`fedld` merges at a server"):
        federation(classification([5, 5]), FedLd(schedule=Gossip()))
    assert isinstance(FedLd().average, Mean)
    for wrong, said in [
        ("margin: -0.1", "strategy.margin: `-0.1`: at least 0 is due"),
        ("keep: 0", "strategy.keep: `0`"),
        ("keep: 1.5", "strategy.keep: `1.5`"),
        ("orient: most", "strategy.orient: `most`"),
        ("average: median", "`average: median` needs `aggregate: mean`"),
        ("aggregate: mean, orient: majority", "`orient: majority` needs `aggregate: principal`"),
    ]:
        assert said in refused("run", write(folder, TEXT.replace("fedavg", f"{{name: fedld, {wrong}}}")).name)


def test_private_messages_have_no_directions_but_a_mean(folder: Path) -> None:
    text = TEXT + "privacy: {clip: 1.0, noise: 1.0, delta: 1e-3}\n"
    assert "`privacy` lets out noisy means only" in refused("run", write(folder, text.replace("fedavg", "fedld")).name)
    simulate(folder, text=text.replace("fedavg", "{name: fedld, aggregate: mean}"))
