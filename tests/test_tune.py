"""`fedsim tune` measures plans and writes the fastest into the scenario, and nothing else."""

from pathlib import Path

import pytest
from launch import call, write

from fedsim.engines.local import LocalEngine
from fedsim.run import tune
from fedsim.run.tune import Trial, candidates, written
from fedsim.scenario import load

BASE = "task: {data: digits, partition: {name: iid, nodes: 8}, model: logistic}  # eight\nstrategy: fedavg\n"
BEST = LocalEngine(plan="stacked", chunk=25, processes=2)
LINE = "engine: {plan: stacked, chunk: 25, processes: 2}"


@pytest.mark.parametrize(
    ("engine", "expected"),
    [
        ("", f"{LINE}\n"),
        ("engine: local  # mine\n", f"{LINE}  # mine\n"),
        (
            "engine: {plan: looped, threads: 1}\nstop: {rounds: 2}\n",
            "engine: {plan: stacked, threads: 1, chunk: 25, processes: 2}\nstop: {rounds: 2}\n",
        ),
        ("engine:\n  memory: 2 GiB\n  chunk: 7\nseed: 3\n", "engine: {memory: 2 GiB, chunk: 25, plan: stacked, processes: 2}\nseed: 3\n"),
    ],
)
def test_the_settings_are_written_and_all_else_stays(folder: Path, engine: str, expected: str) -> None:
    file = write(folder, BASE + engine)
    before = load(file)[0]
    line = written(file, BEST)
    assert file.read_text() == BASE + expected
    assert line == expected.split("  #")[0].splitlines()[0]
    [after] = load(file)
    assert after.hash == before.hash
    found = after.scenario.engine
    assert isinstance(found, LocalEngine) and (found.plan, found.chunk, found.processes) == ("stacked", 25, 2)


def test_settings_left_to_the_engine_are_not_written(folder: Path) -> None:
    file = write(folder, BASE)
    assert written(file, LocalEngine(plan="looped", processes=1)) == "engine: {plan: looped, processes: 1}"


def test_what_is_tried_keeps_the_other_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tune, "cores", lambda: 2)
    monkeypatch.setattr("shutil.which", lambda name: None)
    tried = list(candidates(LocalEngine(device="cpu", threads=1, precision="bfloat16"), 30))
    assert [(one.plan, one.chunk, one.processes) for one in tried] == [
        ("looped", "auto", 1),
        ("looped", "auto", 2),
        ("stacked", 10, 1),
        ("stacked", 10, 2),
        ("stacked", 25, 1),
        ("stacked", 25, 2),
        ("stacked", 30, 1),
    ]
    assert all((one.device, one.threads, one.precision) == ("cpu", 1, "bfloat16") for one in tried)
    more = list(candidates(LocalEngine(device="cpu", threads=1, precision="bfloat16"), 30, convolutions=True))
    assert [(one.plan, one.chunk, one.processes) for one in more if one not in tried] == [("grouped", 25, 1), ("unfolded", 25, 1)]


def test_a_trial_says_what_it_is() -> None:
    assert Trial(BEST, 1.0).words == "stacked, chunk 25, 2 processes"
    assert Trial(LocalEngine(plan="looped", processes=1), 1.0).words == "looped, 1 process"


def test_the_command_measures_and_writes(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tune, "cores", lambda: 1)
    monkeypatch.setattr("shutil.which", lambda name: None)
    file = write(folder)
    text = file.read_text()
    dry = call("tune", file, "--seconds", "0.05", "--dry")
    assert dry.exit_code == 0 and "fastest: " in dry.stdout and file.read_text() == text
    rates = [float(line.split()[-2].replace(",", "")) for line in dry.stdout.splitlines() if "client-steps/s" in line]
    assert len(rates) == 2 and min(rates) > 0  # looped, and stacked four at once
    done = call("tune", file, "--seconds", "0.05")
    [line] = [line for line in done.stdout.splitlines() if line.startswith("written: ")]
    assert file.read_text() == text + line.removeprefix("written: ") + "\n"
    assert not (folder / "runs").exists()


def test_a_model_that_does_not_stack_can_be_tuned(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tune, "cores", lambda: 1)
    monkeypatch.setattr("shutil.which", lambda name: None)
    lines = ["from torch import nn", "class Net(nn.Module):", "    def __init__(self):", "        super().__init__()"]
    lines += ["        self.inner = nn.Linear(64, 10)", "    def forward(self, x):", "        out = self.inner(x.flatten(1))"]
    lines += ["        return out * 2 if float(x.sum()) > 0 else out", ""]
    (folder / "stubborn_net.py").write_text("\n".join(lines))
    file = write(folder, "task: {data: digits, partition: {name: iid, nodes: 8}, model: 'stubborn_net:Net'}\nstrategy: fedavg\n")
    done = call("tune", file, "--seconds", "0")
    assert done.exit_code == 0 and "the model doesn't stack" in done.stdout
    assert file.read_text().endswith("engine: {plan: looped, processes: 1}\n")


def test_mistakes_end_with_one_message(folder: Path) -> None:
    file = write(folder, BASE + "stratgy: fedprox\n")
    found = call("tune", file)
    assert found.exit_code == 2 and "did you mean `strategy`?" in found.stderr
