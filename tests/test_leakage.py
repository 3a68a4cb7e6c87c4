"""Gradient leakage: closed forms of one layer, what a sketch must keep, what hides an image, and the metric in runs."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from launch import refused, resumed, same, simulate, write
from tools import classification, steps
from torch import Tensor, nn

from fedsim.base.keys import fold, normal
from fedsim.codecs import Codec, CountSketch, Float16, Identity, RandK, Srht, TopK
from fedsim.commands.experiment import execute
from fedsim.method.privacy import Account
from fedsim.method.strategy import Strategy
from fedsim.metrics.view import View
from fedsim.models import LeakyLenet
from fedsim.privacy.gaussian import Gaussian
from fedsim.privacy.leakage import Leakage, Tap, _matched, psnr, recovered, ssim
from fedsim.report.figures.leakage import rows_of
from fedsim.report.style import variants_of
from fedsim.run.building import Tasks, build
from fedsim.run.folders import find_runs
from fedsim.scenario import load
from fedsim.task.task import Task
from strategies.fedavg import FedAvg
from strategies.sketched import Sketched

pytestmark = pytest.mark.pictures

KEY = fold(0, "round")[None]


def images(*layers: nn.Module, seed: int = 0) -> Task:
    """4 x 4 pixels in four classes, on layers that take them flat."""
    task = classification([6], 16, 4, seed, nn.Sequential(nn.Flatten(), *layers))
    return replace(task, inputs=task.inputs.view(-1, 4, 4), test_inputs=task.test_inputs.view(-1, 4, 4))


def smooth() -> Task:
    return images(nn.Linear(16, 24), nn.Sigmoid(), nn.Linear(24, 4))


def tap(task: Task, strategy: Strategy | None = None, key: Tensor = KEY) -> Tap:
    return Tap.of(View(task, task.init[None], strategy=strategy or FedAvg(), key=key))


def one(task: Task, place: int = 0) -> tuple[Tensor, Tensor]:
    """An image and its label."""
    return task.inputs[place : place + 1].double(), nn.functional.one_hot(task.targets[place : place + 1], 4).double()


def attacked(line: Tap, task: Task, rounds: int = 150, known: bool = False) -> tuple[Tensor, float, float]:
    """What is recovered of the first image from its message, the distance left, and its PSNR (the images' span is about 4)."""
    image, label = one(task)
    heard = line.message(line.gradient(image, label)).detach()
    guess, logits = normal(fold(1), 16).view(1, 4, 4).double(), normal(fold(2), 4)[None].double()
    found, left = recovered(line, heard, guess, 1e3 * label if known else logits, rounds, known)
    return found, left, psnr(float((found - image).square().mean()), 4.0)


def test_the_gradient_of_one_linear_layer_is_the_image_times_the_residue() -> None:
    """grad W = r x' and grad b = r, so any pair of entries gives x_j = grad W[i, j] / grad b[i]; r = softmax - onehot."""
    task = images(nn.Linear(16, 4))
    image, label = one(task)
    line = tap(task)
    parts = task.layout.views(line.gradient(image, label).detach())
    weight, bias = parts["1.weight"][0], parts["1.bias"][0]
    for row in range(4):
        torch.testing.assert_close(weight[row] / bias[row], image.flatten())
    outputs = image.flatten(1) @ line.task.layout.views(line.model)["1.weight"].T + line.task.layout.views(line.model)["1.bias"]
    torch.testing.assert_close(bias[None], outputs.softmax(-1) - label)


def test_one_linear_layer_is_recovered_exactly() -> None:
    task = images(nn.Linear(16, 4))
    found, left, quality = attacked(tap(task), task, known=True)
    assert left < 1e-16 and quality > 100
    torch.testing.assert_close(found, one(task)[0], atol=1e-5, rtol=1e-5)


@dataclass(frozen=True)
class Whole(FedAvg):
    """R = I."""

    def exposed(self, gradient: Tensor, shared: Tensor) -> Tensor:
        return gradient @ torch.eye(gradient.shape[1], dtype=gradient.dtype)


def test_all_dimensions_of_a_sketch_are_the_full_gradient() -> None:
    task = smooth()
    plain, _, quality = attacked(tap(task), task)
    assert quality > 60
    torch.testing.assert_close(attacked(tap(task, Whole()), task)[0], plain, atol=1e-6, rtol=0)
    rotation = attacked(tap(task, Sketched(sketch=Srht(count=508))), task)[2]  # of 512 that 508 are filled up to
    assert rotation > 60


@pytest.mark.parametrize("sketch", [Srht(count=128), CountSketch(count=128)], ids=["srht", "countsketch"])
def test_a_sketch_with_more_numbers_than_the_image_leaks_it(sketch: Any) -> None:
    task = smooth()
    assert attacked(tap(task, Sketched(sketch=sketch)), task, 300)[2] > 50


def test_a_sketch_with_fewer_numbers_than_the_image_has_other_images_too() -> None:
    """8 numbers do not say what 16 pixels and a label are: the message is matched, by another image."""
    task = smooth()
    for start in range(3):
        _, left, quality = attacked(tap(task, Sketched(sketch=Srht(count=8)), fold(start)[None]), task)
        assert left < 1e-10 and quality < 20


@pytest.mark.parametrize(("codec", "least"), [
    (Identity(), 60), (Float16(), 40), (Srht(fraction=0.5), 50), (CountSketch(fraction=0.5), 50), (RandK(fraction=0.5), 50),
    (TopK(fraction=0.5), 40),
], ids=repr)  # fmt: skip
def test_an_uplink_codec_is_undone_by_the_same_codec(codec: Codec, least: float) -> None:
    task = smooth()
    line = tap(task, FedAvg(uplink=codec))
    gradient = line.gradient(*one(task)).detach().float()
    arrived = codec.carry({"update": gradient}, {}, fold(KEY, "uplink"))[0]["update"]
    torch.testing.assert_close(line.message(gradient.double()).float(), arrived)
    assert attacked(line, task, 300)[2] > least


def batch_of(task: Task, count: int) -> tuple[Tensor, Tensor]:
    return task.inputs[:count].double(), nn.functional.one_hot(task.targets[:count], 4).double()


def test_a_batch_of_one_layer_leaks_mixtures() -> None:
    """grad W[i] / grad b[i] is the mean of the images by their residues r: no image."""
    task = images(nn.Linear(16, 4))
    line, (both, labels) = tap(task), batch_of(task, 2)
    parts = task.layout.views(line.gradient(both, labels).detach())
    residues = torch.cat(
        [task.layout.views(line.gradient(*one))["1.bias"].detach() for one in zip(both.split(1), labels.split(1), strict=True)]
    )
    mix = residues[:, :1] / residues[:, :1].sum()
    torch.testing.assert_close(parts["1.weight"][0, 0] / parts["1.bias"][0, 0], (mix * both.flatten(1)).sum(0))


def test_a_batch_through_a_smooth_layer_leaks_its_images_in_some_order() -> None:
    task = smooth()
    both, labels = batch_of(task, 2)
    found = _matched(both, Leakage(batch=2, steps=80)._attack(tap(task), both, labels, 0))
    assert psnr(float((found - both).square().mean()), 4.0) > 50
    assert torch.equal(_matched(both, both.flip(0)), both)


def test_labels_of_a_batch_are_read_off_slopes() -> None:
    task = smooth()
    for count in (1, 3, 6):
        some, labels = batch_of(task, count)
        line = tap(task)
        line = replace(line, model=line.model * 0)  # all classes are as probable
        assert line.labels(line.message(line.gradients(some, labels)).detach(), count).sort().values.tolist() == sorted(
            labels.argmax(1).tolist()
        )


def test_several_rounds_tell_what_one_does_not() -> None:
    """8 numbers of a sketch do not say what 16 pixels are (above); those of four rounds, each by a sketch of its own, do."""
    task = smooth()
    image, label = one(task)
    line = tap(task, Sketched(sketch=Srht(count=8), train=steps(lr=0.1)))
    found = Leakage(rounds=4, steps=40)._attack(line, image, label, 0)
    assert psnr(float((found - image).square().mean()), 4.0) > 50


def test_samples_of_a_batch_are_clipped_each() -> None:
    task = smooth()
    line, (some, labels) = tap(task, FedAvg(privacy=Gaussian(unit="sample", clip=0.01, noise=1.0, delta=1e-5))), batch_of(task, 2)
    each = line.gradients(some, labels).detach()
    assert each.shape == (2, len(line.model))
    expected = (each / each.norm(dim=1, keepdim=True) * 0.01).mean(0, keepdim=True)
    torch.testing.assert_close(line.message(each), expected)
    torch.testing.assert_close(line.message(each, torch.ones(len(line.model)).double()), expected + 0.5)


def test_slopes_pass_a_codec_that_has_none() -> None:
    line, x = tap(smooth(), FedAvg(uplink=Float16())), torch.full((1, 508), 1 / 3, dtype=torch.float64, requires_grad=True)
    assert torch.equal(torch.autograd.grad(line.message(x).sum(), x)[0], torch.ones(1, 508, dtype=torch.float64))


def test_clipping_by_the_client_hides_no_image() -> None:
    """The direction stays, and the attacker clips its guess alike; the server's noise comes too late for who reads the message."""
    task = smooth()
    line = tap(task, FedAvg(privacy=Gaussian(clip=0.01, noise=10.0), train=steps(lr=0.5)))
    assert float(line.message(line.gradient(*one(task))).detach().norm()) == pytest.approx(0.01)
    assert attacked(line, task, 300)[2] > 50


def private(clip: float, noise: float) -> FedAvg:
    return FedAvg(privacy=Gaussian(clip=clip, noise=noise, unit="sample"))


def test_of_samples_clipping_hides_no_image_and_noise_does() -> None:
    task = smooth()
    qualities = {}
    for noise in (0.0, 1e-3, 1.1):
        view = View(task, task.init[None], strategy=private(0.1, noise), key=KEY)
        qualities[noise] = Leakage(images=2, steps=150).measure(view)["leakage/psnr"]
    assert qualities[0.0] > 50 and qualities[0.0] > qualities[1e-3] + 10 and qualities[1.1] < 15
    whole = Leakage(images=2, steps=150).measure(View(task, task.init[None], strategy=private(torch.inf, 0.0), key=KEY))
    assert whole == Leakage(images=2, steps=150).measure(View(task, task.init[None], strategy=FedAvg(), key=KEY))


def test_noise_is_added_to_the_clipped_gradient_before_the_sketch() -> None:
    """Of a gradient g and noise n the message is R (clip g / |g| + n)."""
    task, sketch = smooth(), Srht(count=100)
    line = tap(task, Sketched(sketch=sketch, privacy=Gaussian(clip=0.1, noise=2.0, unit="sample")))
    gradient, noise = line.gradient(*one(task)).detach(), normal(fold(4), 508)[None].double()
    assert gradient.norm() > 0.1
    expected = sketch.squeeze(0.1 * gradient / gradient.norm() + noise, KEY)[0]
    torch.testing.assert_close(line.message(gradient, noise), expected)


def test_attacked_are_messages_with_the_noise_that_epsilon_asks_for(folder: Path) -> None:
    [loaded] = load(write(folder, SMALL), ["privacy={unit: sample, clip: 1.0, epsilon: 2.0, delta: 1e-5}", "schedule.cohort=all"])
    found = build(loaded, Tasks())
    privacy = found._view().strategy.privacy
    account = found.fed.companion(Account)
    assert isinstance(privacy, Gaussian) and account and privacy.noise == account.noise > 0


def test_the_label_is_the_class_with_the_least_slope() -> None:
    """Also by what a sketch says of the gradient: 400 of 508 numbers."""
    task = smooth()
    for strategy in (FedAvg(), Sketched(sketch=Srht(count=400))):
        line = tap(task, strategy)
        for place in range(6):
            image, label = one(task, place)
            assert int(line.labels(line.message(line.gradient(image, label)).detach())) == int(task.targets[place])


def test_psnr_of_a_known_error() -> None:
    assert psnr(0.01) == pytest.approx(20) and psnr(0.04, 2.0) == pytest.approx(20)
    assert psnr(1.0) == 0 and psnr(0.0) == 300


def test_ssim_of_equal_flat_and_turned_images() -> None:
    drawn = normal(fold(3, torch.arange(3)), 100).view(3, 10, 10).double().numpy()
    assert ssim(drawn, drawn) == pytest.approx(1) and ssim(drawn[0, :3, :3], drawn[0, :3, :3]) == pytest.approx(1)
    a, b, low = 0.3, 0.8, 0.01**2  # of flat images the means alone: (2ab + C1) / (a^2 + b^2 + C1)
    assert ssim(np.full((8, 9), a), np.full((8, 9), b)) == pytest.approx((2 * a * b + low) / (a * a + b * b + low))
    centred = drawn[0, :7, :7] - drawn[0, :7, :7].mean()  # one window, variance v: (C2 - 2v) / (C2 + 2v) of its negative
    v, high = centred.var(ddof=1), 0.03**2
    assert ssim(centred, -centred) == pytest.approx((high - 2 * v) / (high + 2 * v))
    assert ssim(100 * drawn, 80 * drawn, 100) == pytest.approx(ssim(drawn, 0.8 * drawn))


def test_the_metric_attacks_images_of_node_0_always_the_same() -> None:
    task = smooth()
    view = View(task, task.init[None], strategy=FedAvg(), key=KEY)
    metric = Leakage(images=2, steps=120)
    found, again = metric.measure(view), View(task, task.init[None], strategy=FedAvg(), key=KEY)
    assert found == metric.measure(again)
    kept = view.arrays["leakage"]
    assert kept["original"].shape == kept["found"].shape == (2, 4, 4)
    assert all(any(np.allclose(image, mine) for mine in task.inputs.numpy()) for image in kept["original"])
    assert len({image.tobytes() for image in kept["original"]}) == 2
    assert found == {f"leakage/{name}": pytest.approx(kept[name].mean()) for name in ("psnr", "ssim", "mse")}
    assert found["leakage/psnr"] > 50 and found["leakage/ssim"] > 0.99
    later = View(task, task.init[None], strategy=FedAvg(), key=fold(1, "round")[None])
    assert metric.measure(later) != found
    assert np.array_equal(later.arrays["leakage"]["original"], kept["original"])


def test_a_known_label_finds_images_that_a_wrong_one_hides() -> None:
    """One linear layer, where a label that begins wrong often stays wrong."""
    task = images(nn.Linear(16, 4))
    joint, analytic = (
        Leakage(images=4, steps=60, labels=labels).measure(View(task, task.init[None], key=KEY))["leakage/psnr"]
        for labels in ("joint", "analytic")
    )
    assert analytic > 100 > joint


def test_of_several_starts_the_one_counts_whose_message_comes_nearest() -> None:
    task, strategy = smooth(), Sketched(sketch=Srht(count=60))
    image, label = one(task)
    line, key = tap(task, strategy), fold(KEY, "leakage", 0)
    heard = line.message(line.gradient(image, label)).detach().float().double()
    ends = []
    for start in range(3):
        guess = normal(fold(key, "image", start), 16).view(1, 4, 4).double()
        ends.append(recovered(line, heard, guess, normal(fold(key, "label", start), 4).double(), 20))
    best = min(ends, key=lambda end: end[1])[0]
    assert torch.equal(Leakage(steps=20, starts=3)._attack(line, image, label, 0), best)


def test_leaky_lenet_is_the_model_of_the_paper() -> None:
    model = LeakyLenet().build((3, 32, 32), 100)
    assert [tuple(p.shape) for p in model.parameters() if p.dim() > 1] == [(12, 3, 5, 5), (12, 12, 5, 5), (12, 12, 5, 5), (100, 768)]
    assert sum(p.numel() for p in model.parameters()) == 85_036
    assert all(0.4 < float(p.detach().abs().max()) <= 0.5 for p in model.parameters() if p.dim() > 1)
    assert LeakyLenet(spread=0.1).build((8, 8), 10)(torch.zeros(2, 8, 8)).shape == (2, 10)


SMALL = """\
task: {data: digits, partition: {name: iid, nodes: 4}, model: {name: leaky_lenet, spread: 0.2}}
strategy: fedavg
train: {steps: 1, batch: 4}
evaluate: {every: 1 rounds, metrics: [loss, {name: leakage, images: 2, steps: 15, every: 2 rounds}]}
stop: {rounds: 3}
track: none
"""


def test_a_run_is_the_same_with_and_without_attacks(folder: Path) -> None:
    watched = simulate(folder, text=SMALL)
    alone = simulate(folder, "evaluate.metrics=[loss]", text=SMALL, into="alone")
    assert watched.info["model"] == alone.info["model"]
    assert np.isnan(watched.column("leakage/psnr")).tolist() == [False, True, False, False]  # rounds 0 and 2, and the end
    attacks = watched.arrays("leakage")
    assert [int(attack["round"]) for attack in attacks] == [0, 2, 3] and alone.arrays("leakage") == []
    assert watched.column("leakage/psnr")[[0, 2, 3]].tolist() == [attack["psnr"].mean() for attack in attacks]
    assert watched.column("leakage/psnr")[0] > 12


def test_a_run_with_attacks_resumes_in_bits(folder: Path) -> None:
    whole = simulate(folder, text=SMALL)
    simulate(folder, "stop.rounds=2", text=SMALL, into="part")
    part = resumed(folder / "part", "stop.rounds=3")
    same(whole, part)
    pairs = zip(whole.arrays("leakage"), part.arrays("leakage"), strict=True)
    assert all(np.array_equal(one[name], other[name]) for one, other in pairs for name in one)


def test_the_picture_has_originals_above_what_each_variant_tells(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = SMALL.replace("track: none", "track: none\nsweep: {variants: {plain: {}, sketched: {strategy: sketched}}}")
    assert execute(load(write(folder, text), ["stop.rounds=1"]), Tasks(), quiet=True) == 0
    runs = find_runs(["small"])
    rows = rows_of(variants_of(runs))
    assert [row.title for row in rows] == ["original", "plain", "sketched"]
    last = runs[0].arrays("leakage")[-1]
    assert np.array_equal(rows[0].images, last["original"]) and np.array_equal(rows[1].images, last["found"])
    assert rows[1].below == [f"{last['psnr'][k]:.1f} dB, {last['ssim'][k]:.2f}" for k in range(2)]
    assert [row.title for row in rows_of(variants_of(runs[:1]))] == ["original", "round 0", "round 1"]
    assert (runs[0].path.parent / "figures" / "leakage.png").exists()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["task.data=words.txt", "task.model=char_lstm"], "recovers images, not samples of tokens"),
        (["task.data=a9a", "task.model=logistic"], "recovers images, not samples of shape [123]"),
        (["strategy=dsgd"], "listens to messages to a server, and under `gossip` there is none"),
        (["strategy=eggroll", "train=null"], "looks for gradients, and `eggroll` sends none"),
        (["task.model={name: resnet18, norm: batch}"], "needs a model whose gradient follows from one image alone"),
        (["strategy=fedld"], "`fedld` has a loss of its own"),
        (["evaluate.metrics.1.steps=0"], "at least 1 is due"),
        (["evaluate.metrics.1.labels=known"], "`known` is none of joint, analytic"),
    ],
)
def test_bad_input_is_one_error_before_anything_starts(settings: list[str], message: str, folder: Path) -> None:
    (folder / "words.txt").write_text("to be or not to be that is the question\n" * 40)
    file = write(folder, SMALL)
    assert message in " ".join(refused("run", file.name, *settings).split())
