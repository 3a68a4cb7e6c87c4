"""The whole of fedsim on the emulated device, strict about mixing: final numbers equal the CPU's. `make test-device` runs it."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from deployed import Worker, threads, written
from emulated import emulated, without_onednn
from safetensors.torch import load_file, save_file

from fedsim.base.errors import SettingError
from fedsim.deploy.serve import Service
from fedsim.models import Logistic
from fedsim.run.building import Tasks, build
from fedsim.scenario import Loaded, load
from fedsim.transport.identity import ServerIdentity

__all__ = ["threads"]
pytestmark = pytest.mark.device
ROOT = Path(__file__).resolve().parent.parent
FILES = sorted((ROOT / "scenarios").rglob("*.yaml"))
TRAIN = "train: {steps: 2, batch: 8, lr: 0.05}"
TIMES = "world: {compute: {job: {name: linear, from: 2 s, to: 1 s}}}"
ALL = "schedule: {name: rounds, cohort: all}"
CODECS = (
    *("float16", "bfloat16", "topk", "threshold", "randk", "sign", "natural", "qsgd", "ternary", "uniform", "blocks8", "powersgd"),
    *("gaussian", "ams", "srht", "countsketch", "{name: sparse, fraction: 50 %}", "{name: chain, parts: [randk, float16]}"),
    *("{name: ef14, inner: sign}", "{name: ef21, inner: randk}", "{name: ef21, inner: {name: powersgd, rank: 1}}"),
)
PRIVACY = "{clip: 1, noise: 1, delta: 1e-3%s}"
PERSONAL = ("fedper", "fedrep", "ditto", "pfedme", "apfl", "{name: ifca, clusters: 2}")
MASKS = "data: {name: npz, file: masks.npz}, partition: {name: iid, nodes: 6}"
SHIFTS = ("{name: noise, sigma: 0.1}", "{name: scale, factor: 0.5}", "{name: rotate, degrees: 90}", "{name: swap_labels, pair: [3, 8]}")


TASK = "data: digits, partition: {name: dirichlet, alpha: 1.0, nodes: 6}"
GROUPS = "groups: {small: 2, rest: rest}"
UNLIKE = "{name: mlp, hidden: [16]}, models: {small: logistic}, public: 60"


def cases() -> dict[str, tuple[str, ...]]:
    """Of each: data and model, strategy, other settings, metrics."""

    def case(
        strategy: str = "fedavg", *more: str, model: str = "logistic", metrics: str = "accuracy, loss", task: str = TASK
    ) -> tuple[str, ...]:
        return f"{task}, model: {model}", strategy, "\n".join(more), metrics

    plain = case("fedavg", TRAIN)

    found = {"fedavg": plain}
    for name in [
        "fedavgm",
        "fedadam",
        "fedadagrad",
        "fedyogi",
        "fedprox",
        "fedcm",
        "feddyn",
        "fedsam",
        "mofedsam",
        "fedspeed",
        "scaffold",
        "fedstale",
        "mifa",
        "fedvarp",
    ]:
        found[name] = case(name, TRAIN, "schedule: {name: rounds, cohort: 4}")
    for name in ("fedld", "fedlex", "{name: saf, ago: 1, after: 0}", "{name: mesa, after: 0}"):
        found[name] = case(name, TRAIN)
    for name in ("fedbuff", "fedasync", "fedfix"):
        found[name] = case(name, TRAIN, TIMES)
    for name in ("dsgd", "choco", "d2", "epidemic", "sgp", "gradient_tracking"):
        found[name] = case(name, TRAIN)
    found["adpsgd"] = case("adpsgd", TRAIN, TIMES)
    found["annealed"] = case("{name: dsgd, annealing: 0.1}", TRAIN)
    found["ef21"] = case("{name: ef21, lr: 0.1}")
    found["ef21 theory"] = case("ef21")
    found["ef21_w"] = case("ef21_w")
    found["one_byte"] = case("{name: one_byte, probes: 2, epsilon: 1e-3, lr: 1e-3, batch: 8}", "uplink: log8_byte")
    found["zo_adamu"] = case("zo_adamu")
    found["eggroll"] = case("{name: eggroll, population: 8, batch: 16}")
    found["gradient_coding"] = case("gradient_coding")
    found["adversarial"] = case("adversarial", TRAIN)
    for topology in ("ring", "complete", "torus", "exponential", "{name: random_pulls, peers: 2}", "{name: final_merge, inner: ring}"):
        found[f"topology {topology}"] = case("dsgd", TRAIN, f"schedule: {{name: gossip, topology: {topology}}}")
    for rule in ("median", "trimmed_mean", "krum", "multi_krum", "bulyan", "geometric_median", "clipped_mean"):
        attackers = ", attackers: 0" if rule == "bulyan" else ", attackers: 1" if "krum" in rule or rule == "trimmed_mean" else ""
        found[f"average {rule}"] = case(f"{{name: fedavg, average: {{name: {rule}{attackers}}}}}", TRAIN, ALL)
    for codec in CODECS:
        found[f"uplink {codec}"] = case("fedavg", TRAIN, f"uplink: {codec}")
    found["uplink sign_bit"] = case("{name: fedavg, weights: uniform}", TRAIN, "uplink: sign_bit")
    for codec in ("qsgd", "topk", "powersgd", "countsketch", "{name: ef14, inner: sign}"):
        found[f"crosslink {codec}"] = case("dsgd", TRAIN, f"crosslink: {codec}")
    for codec in ("float16", "qsgd", "{name: ef21, inner: topk}", "{name: ef14, inner: sign}"):
        found[f"downlink {codec}"] = case("fedavg", TRAIN, f"downlink: {codec}")
    for name in ("alie", "sign_flip", "label_flip", "gaussian", "inner_product"):
        found[f"attackers {name}"] = case("fedavg", TRAIN, f"world: {{attackers: {{name: {name}, nodes: 20 %}}}}", ALL)
    for unit in ("", ", unit: sample"):
        found[f"privacy{unit}"] = case("{name: fedavg, weights: uniform}", TRAIN, f"privacy: {PRIVACY % unit}", ALL)
    for sampling in ("{name: bernoulli, chance: 50 %}", "weighted"):
        found[f"sampling {sampling}"] = case("fedavg", TRAIN, f"schedule: {{name: rounds, sampling: {sampling}}}")
    waits = "schedule: {name: rounds, cohort: 4, wait_for: 2, deadline: 3 s, late: keep}"
    found["deadline"] = case("fedavg", TRAIN, TIMES, waits)
    found["curve"] = case(
        "fedavg", "train: {epochs: 2, batch: 8, lr: {name: exponential, start: 0.1, factor: 0.9}, momentum: 0.9, clip: 1}"
    )
    found["decay"] = case("fedprox", "train: {epochs: 2, batch: 8, lr: 0.1, weight_decay: 1e-3}")
    found["whole batches"] = case("fedavg", "train: {epochs: 1, batch: all, lr: 0.05}")
    for shift in SHIFTS:
        found[f"shift {shift}"] = case("fedavg", TRAIN, model=f"logistic, shift: [{shift}]", metrics="accuracy, loss, clients")
    nets = ("{name: mlp, hidden: [16]}", "{name: resnet18, width: 4, norm: group, groups: 2}", "{name: resnet18, width: 4, norm: batch}")
    for model in nets:
        for plan in ("stacked", "cuda_graphs", "looped"):
            found[f"{model} {plan}"] = case("fedavg", "train: {steps: 1, batch: 4, lr: 0.05}", f"engine: {{plan: {plan}}}", model=model)
    whole = "accuracy, loss, clients, consensus, average, mergeability, gradient_norm"
    found["metrics of peers"] = case("dsgd", TRAIN, metrics=whole)
    found["metrics of a server"] = case("fedavg", TRAIN, metrics="accuracy, loss, clients, gradient_norm, {name: robust, samples: 20}")
    found["chunks"] = case("fedavg", TRAIN, "engine: {chunk: 2}", ALL)
    found["checkpoints"] = case("{name: ef21, lr: 0.1}", "checkpoint: {every: 1 rounds}")
    for name in ("fedavg", "fedprox", "scaffold", "feddyn", "fedcm", "fedsam", "fedspeed"):
        found[f"graphs {name}"] = case(name, TRAIN, "engine: {plan: cuda_graphs}")
    for optimizer in ("adam", "adamw", "adagrad"):
        for state in ("reset", "keep"):
            train = f"train: {{epochs: 2, batch: 8, lr: 0.01, optimizer: {{name: {optimizer}, eps: 1e-3}}, state: {state}}}"
            found[f"{optimizer} {state}"] = case("fedavg", train)
    for clip in ("{name: adagc, warmup: 2}", "{name: spam, wait: 2, warmup: 2, every: 3}"):
        train = f"train: {{epochs: 2, batch: 8, lr: 0.01, optimizer: {{name: adam, eps: 1e-3}}, state: keep_8bit, clip: {clip}}}"
        found[f"clip {clip}"] = case("fedavg", train)
    found["adam stacked"] = case("fedprox", "train: {steps: 3, batch: 8, optimizer: {name: adam, eps: 1e-3}}", "engine: {plan: stacked}")
    found["momentum kept"] = case("fedavg", "train: {steps: 2, batch: 8, lr: 0.05, momentum: 0.9, state: keep}")
    found["work by node"] = case("fedavg", "train: {steps: {0..2: 1, 3..5: 3}, batch: 8, lr: {name: uniform, from: 0.01, to: 0.05}}")
    for more in ("edges: 2, every: 2", "edges: [4, 2], every: [1, 2]", "edges: 2, every: 2, topology: ring"):
        found[f"hierarchy {more}"] = case("fedavg", TRAIN, f"schedule: {{name: hierarchy, {more}}}")
    found["hierarchy fedadam"] = case("fedadam", TRAIN, "schedule: {name: hierarchy, edges: 2, every: 2}", "uplink: qsgd")
    for name in ("{name: fedmd, digest: 3, digest_batch: 16}", "{name: feddf, steps: 3, batch: 16}", "{name: feddf, steps: 0}"):
        found[f"architectures {name}"] = case(name, TRAIN, ALL, GROUPS, model=UNLIKE)
    found["fedmd alone"] = case("{name: fedmd, digest: 3}", TRAIN, ALL, model="logistic, public: 60")
    found["weights"] = case(model="logistic, weights: first.safetensors")
    found["client weights"] = case("fedavg", TRAIN, model="logistic, client_weights: {0..2: 1, 3..5: 4}")
    found["client weights sampled"] = case(
        "fedavg", TRAIN, "schedule: {name: rounds, sampling: weighted, cohort: 3}", model="logistic, client_weights: {0..2: 1, 3..5: 4}"
    )
    found["adapt"] = case("{name: fedavg, weights: uniform}", TRAIN, f"privacy: {PRIVACY % ', adapt: {quantile: 0.5, noise: 2}'}", ALL)
    found["best"] = case("fedavg", TRAIN, "checkpoint: {every: 1 rounds}")
    found["growth"] = case("fedavg", TRAIN, "schedule: {name: rounds, cohort: 2, growth: 1.5}")
    whole = "accuracy, loss, iou, pixel_accuracy"
    train = "train: {steps: 2, batch: 4, lr: 0.1}"
    for plan in ("stacked", "cuda_graphs", "looped"):
        fcn = "{name: fcn, width: 4, layers: 2}, ignore: 2"
        found[f"masks {plan}"] = case("fedavg", train, f"engine: {{plan: {plan}}}", model=fcn, metrics=whole, task=MASKS)
    found["augment"] = case("fedavg", TRAIN, model="logistic, augment: [flip, crop, cutout, noise]")
    for name in PERSONAL:
        found[f"personal {name}"] = case(name, TRAIN, metrics="accuracy, loss, personal", model="{name: mlp, hidden: [8]}")
    return found


CASES = cases()
WAITS = {"one_byte": 10, "zo_adamu": 11, "eggroll": 7}  # in a round; others twice at most: they keep a log of bytes, and draw by job


def settings(name: str) -> str:
    task, strategy, more, metrics = CASES[name]
    best = ", best: test/loss" if name == "best" else ""
    evaluate = f"evaluate: {{every: 2 rounds, metrics: [{metrics}]{best}}}"
    return f"task: {{{task}}}\nstrategy: {strategy}\n{more}\n{evaluate}\nstop: {{rounds: 3}}\ntrack: none\n"


def beside(name: str, folder: Path) -> None:
    """Files that a case names."""
    if "first.safetensors" in CASES[name][0]:
        save_file(Logistic().build((8, 8), 10).state_dict(), folder / "first.safetensors")
    if "masks.npz" in CASES[name][0]:
        rng = np.random.default_rng(0)
        x = rng.random((80, 6, 6, 1), dtype=np.float32)
        np.savez(folder / "masks.npz", x=x, y=(x[..., 0] * 3).astype(int), x_test=x[:20], y_test=(x[:20, ..., 0] * 3).astype(int))


def both(file: Path, tmp_path: Path, tasks: Tasks, smoke: bool = False) -> tuple[dict[str, Any], dict[str, Any], int]:
    """run.json of a scenario on the device, and on the CPU (where what is stacked is `grouped`); how often a round there waits.

    Of a sweep the last run with the first one's seed.
    """

    def read(*settings: str) -> Loaded:
        runs = load(file, [*settings, "track=none"], smoke)
        return [run for run in runs if run.seed == runs[0].seed][-1]

    loaded = read("engine.device=emulated")
    with emulated() as machine:
        run = build(loaded, tasks)
        there = run.execute(tmp_path / "there")
        del run
    together = any(plan in file.read_text() for plan in ("cuda_graphs", "plan: stacked")) or (smoke and there["plan"] != "looped")
    plan = ["engine.plan=grouped"] if together else []  # as convolutions are there
    loaded = read("engine.device=cpu", "engine.processes=1", *plan)
    with without_onednn():  # as it is there
        return there, build(loaded, tasks).execute(tmp_path / "here"), machine.steady().syncs


@pytest.fixture(scope="module")
def tasks() -> Tasks:
    return Tasks()


@pytest.mark.parametrize("name", CASES)
def test_numbers_are_the_cpu_s(name: str, tmp_path: Path, tasks: Tasks) -> None:
    file = tmp_path / "case.yaml"
    file.write_text(settings(name))
    beside(name, tmp_path)
    there, here, waits = both(file, tmp_path, tasks)
    assert waits <= WAITS.get(name, 2)
    agree(there, here)


def agree(there: dict[str, Any], here: dict[str, Any]) -> None:
    """Final numbers are the same but for rounding."""
    assert there["status"] == here["status"] == "finished", there["reason"]
    assert there["final"].keys() == here["final"].keys()
    numbers = {key: value for key, value in here["final"].items() if key != "time/wall_seconds"}
    assert {key: there["final"][key] for key in numbers} == pytest.approx(numbers, rel=1e-4, abs=1e-5, nan_ok=True)


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_shipped_scenarios_have_the_cpu_s_numbers(file: Path, tmp_path: Path, tasks: Tasks) -> None:
    if file.stem == "shakespeare":
        pytest.skip("off the CPU PyTorch takes a fused LSTM cell, which only CUDA has")
    try:
        there, here, _ = both(file, tmp_path, tasks, smoke=True)  # too short for a steady state: steps are still recorded
    except SettingError as error:
        if "FEDSIM_DATA" not in str(error):
            raise
        pytest.skip(str(error))
    agree(there, here)


DEPLOYED = {
    "scaffold": "strategy: scaffold\ntrain: {epochs: 1, batch: 32, lr: 0.1}\n",
    "moments": "strategy: fedavg\ntrain: {epochs: 1, batch: 32, lr: 0.01, optimizer: {name: adam, eps: 1e-3}, state: keep}\n",
    "feedback": "strategy: fedavg\ntrain: {epochs: 1, batch: 32, lr: 0.1}\nuplink: {name: ef21, inner: randk}\ndownlink: float16\n",
}


@pytest.mark.usefixtures("threads")
@pytest.mark.parametrize("name", DEPLOYED)
def test_a_worker_on_the_device_makes_the_simulation_s_model(name: str, tmp_path: Path) -> None:
    rest = "schedule: {name: rounds, cohort: 4}\nstop: {rounds: 3}\n" + DEPLOYED[name]
    [loaded] = load(file := written(tmp_path, f"task: {{{TASK}, model: logistic}}\n{rest}"))
    with emulated() as machine:
        service = Service(loaded, tmp_path / "run", ["127.0.0.1:0"], ServerIdentity.plain(), lambda text: None)
        [address] = service.start()
        run = service.build()
        worker = Worker(address, "0..5", tmp_path / "worker", device="emulated:0")
        info = run.execute(tmp_path / "run")
        service.stop(info["status"], info["reason"])
        worker.join(20)
    assert info["status"] == "finished" and "emulated:0" in "".join(worker.said) and machine.total("train").launches
    build(load(file)[0], Tasks()).execute(tmp_path / "plain")
    mine, plain = (load_file(tmp_path / folder / "model.safetensors") for folder in ("run", "plain"))
    for one in plain:
        torch.testing.assert_close(mine[one], plain[one], rtol=1e-5, atol=1e-6)
