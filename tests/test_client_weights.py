"""Weights of clients that a scenario gives, in the place of their samples."""

from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from launch import TASKS, refused, simulate, write

from fedsim.run.building import build
from fedsim.scenario import load

QUICK = ("engine.plan=looped", "train.steps=1", "stop.rounds=2")


def test_weights_that_are_sample_counts_change_nothing(folder: Path) -> None:
    [loaded] = load(write(folder), QUICK)
    counts = build(loaded, TASKS).fed.task.counts.tolist()
    plain, given = simulate(folder, *QUICK), simulate(folder, *QUICK, f"task.client_weights={counts}", into="given")
    assert plain.info["model"] == given.info["model"]


def test_equal_weights_are_uniform_ones(folder: Path) -> None:
    uniform = simulate(folder, *QUICK, "strategy.weights=uniform")
    assert uniform.info["model"] == simulate(folder, *QUICK, "task.client_weights=0.7", into="given").info["model"]


def test_a_round_s_model_is_the_mean_by_the_weights(folder: Path) -> None:
    """Of groups: after one step from the same model, alone and together."""
    settings = (*QUICK, "groups={a: 2, b: rest}", "schedule.cohort=all", "stop.rounds=1", "train.batch=all")

    def model(weights: str, into: str) -> dict[str, torch.Tensor]:
        return safetensors.torch.load_file(
            simulate(folder, *settings, f"task.client_weights={weights}", into=into).path / "model.safetensors"
        )

    both, a, b = (model(text, into) for text, into in (("{a: 9, b: 1}", "both"), ("{a: 1, b: 1e-12}", "a"), ("{a: 1e-12, b: 1}", "b")))
    for name, found in both.items():  # 2 x 9 of a, 6 x 1 of b
        torch.testing.assert_close(found, 0.75 * a[name] + 0.25 * b[name], atol=1e-6, rtol=1e-5)
    assert not torch.allclose(a["1.weight"], b["1.weight"])


def test_weighted_sampling_follows_them(folder: Path) -> None:
    text = ["schedule={name: rounds, cohort: 1, sampling: weighted}", "task.client_weights=[1, 1, 1, 1, 1, 1, 1, 9]"]
    [loaded] = load(write(folder), text)
    assert np.allclose(build(loaded, TASKS).fed.schedule.frequency(build(loaded, TASKS).fed), [1 / 16] * 7 + [9 / 16])


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ("[1, 2]", "a list of 2 for 8 nodes"),
        ("[1, 1, 1, 1, 0, 1, 1, 1]", "task.client_weights.4"),
        ("-1", "task.client_weights"),
        ("{a: 1}", "unknown group `a`"),
        ("{name: uniform, from: 0, to: 0}", "above 0 is due"),
    ],
)
def test_weights_that_do_not_fit_are_refused(folder: Path, value: str, said: str) -> None:
    error = " ".join(refused("run", write(folder), f"task.client_weights={value}").split())
    assert "task.client_weights" in error and said in error
