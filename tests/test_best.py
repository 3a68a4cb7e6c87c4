"""Early stopping: which evaluation is best, when none has been better for too long, and the model that is kept of it."""

import json
import math
from fractions import Fraction
from pathlib import Path

import pytest
import torch
from launch import call, refused, resumed, same, simulate, write

import fedsim
from fedsim.base.errors import FedsimError
from fedsim.run.best import Best
from fedsim.settings.values import Every

QUICK = ("engine.plan=looped", "train.steps=1")


def seen(best: Best, *values: float) -> Best:
    """Evaluations each 2 rounds and 3 seconds of models whose only number is the round."""
    for place, value in enumerate(values):
        model = torch.tensor([[2.0 * place]])
        best.seen({"round": 2 * place, "time/seconds": 3.0 * place, str(best.metric): value}, model, model[:, :0])
        model += 1  # goes on
    return best


@pytest.mark.parametrize(
    ("metric", "gain", "values", "where"),
    [
        ("test/loss", 0.0, [3, 1, 2, 1, 4], 1),  # lower is better, and the first of equals counts
        ("test/accuracy", 0.0, [3, 1, 5, 1, 4], 2),
        ("test/accuracy", 2.5, [3, 1, 5, 6, 5.5], 3),  # 5 is no more than 2.5 above 3
        ("regression/rmse", 0.0, [3, 4], 0),
        ("clients/loss_worst_10", 0.0, [3, 1, 2], 1),
        ("test/brier", 0.0, [3, 1, 2], 1),
        ("test/mean_squared_error/0", 0.0, [3, 1, 2], 1),  # of one output
        ("test/f1/error", 0.0, [3, 1, 4], 2),  # of a class with that name
        ("test/auc", 0.0, [math.nan, 1, 3, 2], 2),  # what is no number betters nothing, and is bettered
    ],
)
def test_the_best_is_the_first_that_none_betters(metric: str, gain: float, values: list[float], where: int) -> None:
    best = seen(Best(metric, gain), *values)
    assert (best.value, best.round, best.seconds) == (values[where], 2 * where, 3.0 * where)
    assert best.models is not None and best.models.tolist() == [[2.0 * where]]
    assert best.waited(Every(rounds=4)) == (len(values) - 1 - where) / 2
    assert best.waited(Every(seconds=Fraction(6))) == (len(values) - 1 - where) / 2


def test_without_a_metric_or_an_evaluation_nobody_waits() -> None:
    assert seen(Best(None), 1.0, 2.0).told() == {} == Best("test/loss").told()
    assert Best("test/loss").waited(Every(rounds=1)) == 0


@pytest.mark.parametrize("patience", ["2 rounds", "8 s"])
def test_a_run_ends_at_the_evaluation_that_tries_its_patience_and_keeps_the_best(folder: Path, patience: str) -> None:
    """By accuracy, in a run of which another without patience tells what was to come; it goes on to the same bits."""
    clock = ("evaluate.every=0.7 s",) if patience == "8 s" else ("evaluate.every=1 rounds",)
    settings = (*QUICK, *clock, "evaluate.best=test/accuracy", "stop.rounds=40")
    run = simulate(folder, *settings, f"stop.patience={patience}", into="short")
    values, rounds, seconds = (run.column(name) for name in ("test/accuracy", "round", "time/seconds"))
    best = int(values.argmax())
    waited = seconds - seconds[best] if patience.endswith(" s") else rounds - rounds[best]
    goal = float(patience.split()[0])
    assert run.info["reason"].startswith("no better for") and rounds[-1] < 40
    assert waited[-1] >= goal > waited[-2] and (values[best + 1 :] <= values[best]).all()
    assert run.info["best"] == {"metric": "test/accuracy", "value": values[best], "round": rounds[best], "seconds": seconds[best]}
    whole = simulate(folder, *settings, f"stop.patience={patience}", f"stop.rounds={int(rounds[best]) or 1}", into="to_the_best")
    if patience == "2 rounds":  # the run's last model is the other's best
        [kept], [last] = fedsim.runs(run.path)[0].best_models, fedsim.runs(whole.path)[0].models
        assert all(torch.equal(a, b) for a, b in zip(kept.parameters(), last.parameters(), strict=True))
    longer = f"stop.patience={goal + 2:g}{patience.removeprefix(patience.split()[0])}"
    same(simulate(folder, *settings, longer, into="long"), resumed(run.path, longer))
    assert json.loads((run.path / "run.json").read_text())["best"] == json.loads((folder / "long" / "run.json").read_text())["best"]


def test_inspect_says_which_model_is_kept(folder: Path) -> None:
    run = simulate(folder, *QUICK, "evaluate.best=test/loss")
    lines = call("inspect", run.path).stdout
    assert "kept  the model of round 4" in lines and f"({run.column('test/loss')[-1]:.4g})" in lines
    with pytest.raises(FedsimError, match=r"no best model: see `evaluate\.best`"):
        fedsim.runs(simulate(folder, *QUICK, into="plain").path)[0].best_models  # noqa: B018


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (["stop.patience=0 rounds"], "stop.patience"),
        (["stop.patience=often"], "stop.patience"),
        (["stop.patience=3 rounds", "evaluate.metrics=[accuracy]"], "never reached: `evaluate.metrics` lacks `loss`"),
        (["stop.patience=3 s", "world=null"], "nothing in `world` takes time"),
        (["evaluate.gain=-1"], "evaluate.gain"),
        (["evaluate.gain=0.1"], "evaluate.gain: nothing is to be better"),
    ],
)
def test_patience_that_can_not_be_tried_is_refused(folder: Path, settings: list[str], said: str) -> None:
    assert said in refused("run", write(folder), *settings)


def test_a_metric_that_nobody_measures_is_named_with_the_nearest(folder: Path) -> None:
    result = call("run", write(folder), *QUICK, "evaluate.best=test/acuracy")
    assert result.exit_code == 1 and "did you mean `test/accuracy`?" in " ".join((result.stdout + result.stderr).split())
