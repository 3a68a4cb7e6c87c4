"""`engine.precision: float64` for oracles: samples, rows, messages, checkpoints and replays in double precision, beside a closed form."""

from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from launch import TASKS, call, write

from fedsim.run.building import build
from fedsim.run.folders import RunFolder, find_runs
from fedsim.scenario import load

OWN = '''
from pathlib import Path
import numpy as np
import torch

def bowls(base: Path, file: str = "bowls.csv"):
    """Node i has a_i/2 |w - b_i|^2, a row (a, b) of a table beside the scenario."""
    table = np.loadtxt(base / file, delimiter=",")
    return {"x": table, "y": table[:, 0], "x_test": table, "y_test": table[:, 0], "node": np.arange(len(table))}

class Bowl(torch.nn.Module):
    def __init__(self, input_shape: tuple):
        super().__init__()
        self.w = torch.nn.Parameter(torch.zeros(input_shape[0] - 1))
    def forward(self, x):
        return 0.5 * x[:, 0] * (self.w - x[:, 1:]).square().sum(-1)
'''
TABLE = np.array([[1.0, 0.1, -0.7], [3.0, 0.3, 1.1], [0.7, -1.3, 0.9]])  # 0.1, 0.3, ... are no float32 numbers
TEXT = """\
task: {data: 'oracle_parts:bowls', partition: {name: natural, by: node}, model: 'oracle_parts:Bowl', loss: output}
strategy: fedavg
train: {steps: 4, batch: all, lr: 0.1}
schedule: {name: rounds, cohort: all}
evaluate: {metrics: [loss]}
engine: {precision: float64}
stop: {rounds: 5}
track: none
"""


@pytest.fixture
def oracle(folder: Path) -> Path:
    (folder / "oracle_parts.py").write_text(OWN)
    np.savetxt(folder / "bowls.csv", TABLE, delimiter=",")
    return write(folder, TEXT, "oracle.yaml")


def closed_form(rounds: int) -> torch.Tensor:
    """K steps of rate lr take node i from w to b_i + (1 - lr a_i)^K (w - b_i); the server takes the mean."""
    a, b = torch.tensor(TABLE[:, :1]), torch.tensor(TABLE[:, 1:])
    w = torch.zeros(2, dtype=torch.float64)
    for _ in range(rounds):
        w = (b + (1 - 0.1 * a) ** 4 * (w - b)).mean(0)
    return w


def model(run: RunFolder) -> torch.Tensor:
    return safetensors.torch.load_file(run.path / "model.safetensors")["w"].flatten()


def test_a_run_is_right_to_twelve_digits_also_resumed_and_replayed(oracle: Path) -> None:
    assert call("run", oracle, "engine.plan=stacked").exit_code == 0
    [run] = find_runs(["oracle"])
    assert model(run).dtype == torch.float64 and run.info["precision"] == "float64"
    torch.testing.assert_close(model(run), closed_form(5), rtol=0, atol=1e-15)
    assert call("resume", "oracle", "stop.rounds=9").exit_code == 0  # the table lies beside the scenario, not beside the run
    [run] = find_runs(["oracle"])
    torch.testing.assert_close(model(run), closed_form(9), rtol=0, atol=1e-15)
    assert "same: model" in call("replay", "oracle").stdout
    w, (a, b) = closed_form(9), (torch.tensor(TABLE[:, 0]), torch.tensor(TABLE[:, 1:]))
    assert run.info["final"]["test/loss"] == pytest.approx(float((a / 2 * (w - b).square().sum(1)).mean()), abs=1e-15)


def test_in_single_precision_it_is_not(oracle: Path) -> None:
    [loaded] = load(oracle, ["engine.precision=float32"])
    run = build(loaded, TASKS)
    run.execute(oracle.parent / "run")
    assert 1e-9 < float((run.fed.state["model"][0].double() - closed_form(5)).abs().max()) < 1e-6


@pytest.mark.parametrize("plan", ["stacked", "looped"])
@pytest.mark.parametrize("codec", ["float16", "qsgd", "blocks8", "{name: ef21, inner: sign}", "{name: srht, count: 300}"])
def test_rows_keep_their_precision_behind_codecs(folder: Path, codec: str, plan: str) -> None:
    text = "task: {data: digits, partition: {name: iid, nodes: 3}, model: logistic}\nstrategy: scaffold\ntrain: {steps: 1}\n"
    text += f"stop: {{rounds: 2}}\nschedule: {{name: rounds, cohort: 2}}\nengine: {{precision: float64, plan: {plan}}}\ntrack: none\n"
    [loaded] = load(write(folder, text), [f"uplink={codec}", f"downlink={codec}"])
    run = build(loaded, TASKS)
    assert run.execute(folder / "run")["status"] == "finished"
    assert {rows.dtype for rows in run.fed.state.values()} == {torch.float64}
    assert run.fed.task.inputs.dtype == torch.float64 == run.fed.task.test_inputs.dtype
