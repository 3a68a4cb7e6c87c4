"""What a run says that it found, where it doubts that this was meant, and how it ends where nothing was ever merged."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from launch import TASKS, TEXT, call, refused, write

from fedsim.base.errors import SettingError
from fedsim.data.own import OwnSource
from fedsim.data.partition import Iid, Natural
from fedsim.models import Logistic
from fedsim.run.building import build
from fedsim.run.doubts import doubts
from fedsim.run.folders import find_runs
from fedsim.run.found import found
from fedsim.run.runner import Run
from fedsim.scenario import load
from fedsim.task.build import build_task
from fedsim.task.loss import CrossEntropy
from fedsim.task.settings import TaskSettings

OWN = """\
import numpy as np
SITE = np.arange(100) // 20

def load(y: str = "halves", x: str = "plain"):
    half = np.arange(100) % 2
    x = {"plain": np.arange(200.0).reshape(100, 2) / 200, "constant": np.ones((100, 2)), "bytes": np.full((100, 2, 2), 255, np.uint8),
         "floats": np.arange(100 * 12.0).reshape(100, 2, 2, 3) % 256}[x]
    y = {"halves": half, "float": half.astype(float), "from one": half + 1, "gap": 7 * half, "one": 0 * half, "bool": half > 0,
         "text": np.where(half, "ill", "well"), "hot": np.eye(2)[half],
         "missing": np.array(["a", "nan"])[half], "unlabelled": np.arange(100) % 3 - 1,
         "hot classes": np.eye(2, dtype=int)[half], "many": np.arange(100),
         "price": np.arange(100) / 3, "same": np.full(100, 1.5), "signs": 2.0 * half - 1}[y]
    return dict(x=x, y=y, site=SITE)

def tests(site: str, y: str = ""):
    rows, y = np.array([*map(int, site)]), np.array([*map(int, y or "0101010101"[:len(site)])])
    return load() | dict(x_test=np.zeros((len(rows), 2)), y_test=y, site_test=rows)
"""
REST = """\
strategy: fedavg
train: {batch: 10}
schedule: {name: rounds, cohort: all}
stop: {rounds: 1}
track: none
"""


def block(run: Run) -> list[str]:
    return found(run.fed.task, run.scenario.task.data)


def warned(run: Run) -> list[str]:
    return doubts(run.fed, run.stop)


def of_data(folder: Path, words: str, model: str = "logistic", *settings: str) -> Run:
    """A run that is ready, of five sites over a hundred rows."""
    (folder / "sites.py").write_text(OWN)
    task = f"task: {{data: {words}, partition: {{name: natural, by: site}}, model: {model}}}\n"
    [loaded] = load(write(folder, task + REST), settings)
    return build(loaded, TASKS)


@pytest.mark.parametrize(
    ("y", "targets", "doubt"),
    [
        ("halves", "classification: 2 classes (0: 40, 1: 40), by cross_entropy (y: int64)", ""),
        ("bool", "classification: 2 classes (False: 40, True: 40), by cross_entropy (y: bool)", ""),
        ("text", "classification: 2 classes (ill: 40, well: 40), by cross_entropy (y: texts)", ""),
        (
            "float",
            "regression of 1 number, from 0 to 1, by squared_error (y: float64)",
            "y holds only 0, 1 as float64, which is taken for a regression; for classes set `task.loss: cross_entropy`",
        ),
        ("signs", "regression of 1 number, from -1 to 1, by squared_error (y: float64)", "y holds only -1, 1 as float64"),
        ("price", "regression of 1 number, from 0 to ", ""),
        ("same", "regression of 1 number, from 1.5 to 1.5", "all training rows have the same target 1.5"),
        ("hot", "regression of 2 numbers, from 0 to 1, by squared_error (y: float64 [2])", "each row of y has one 1 and else 0"),
        (
            "from one",
            "classification: 3 classes, 1 of them without a row (0: 0, 1: 40, 2: 40)",
            "no row has class 0 of 3: labels count from 1, and classes from 0; number labels from 0",
        ),
        ("gap", "classification: 8 classes, 6 of them without a row (0: 40, 1: 0,", "6 of 8 classes have no row (1, 2, 3, 4, 5, ...)"),
        ("missing", "classification: 2 classes (a: 40, nan: 40)", "`nan` is a class like the others (50 rows): leave rows out"),
        ("unlabelled", "classification: 3 classes (-1: ", "`-1` is a class like the others (34 rows)"),
        ("one", "classification: 1 class (0: 80)", "all training rows have the class 0: there is nothing to tell apart"),
        ("many", "classification: 100 classes, ", "80 classes among 80 rows; for a regression set `task.loss: squared_error`"),
    ],
)
def test_labels_that_may_mean_something_else(folder: Path, y: str, targets: str, doubt: str) -> None:
    run = of_data(folder, f"{{name: 'sites:load', y: {y}}}")
    lines, warnings = block(run), warned(run)
    assert lines[0].startswith("  data      sites:load: 80 rows for training, 20 for testing; 2 features each, from 0 to 0.9")
    assert lines[1].startswith(f"  targets   {targets}")
    assert lines[2].startswith("  tests     a fifth, held out by lot; 5 of 5 nodes have ")
    assert lines[3].startswith("  nodes     5; samples a node ")
    named = [one for one in warnings if one.startswith("task.data: " + doubt)]
    assert (len(named) == 1) if doubt else not [one for one in warnings if "test set" not in one]


def test_the_scenario_may_say_that_whole_numbers_are_classes(folder: Path) -> None:
    run = of_data(folder, "{name: 'sites:load', y: signs}", "logistic, loss: cross_entropy")
    assert "2 classes (-1: 40, 1: 40), by cross_entropy" in block(run)[1] and not warned(run)
    same = of_data(folder, "{name: 'sites:load', y: float}", "logistic, loss: squared_error")
    assert "regression of 1 number" in block(same)[1] and not warned(same)
    with pytest.raises(SettingError, match=r"takes one class a sample; y holds float64 of shape \[80\], and not only whole numbers"):
        of_data(folder, "{name: 'sites:load', y: price}", "logistic, loss: cross_entropy")
    with pytest.raises(SettingError, match=r"one 1 a row: `y.argmax\(1\)` makes classes of it"):
        of_data(folder, "{name: 'sites:load', y: hot classes}")


@pytest.mark.parametrize(
    ("words", "said", "doubt"),
    [
        ("site: '0123401234'", "5 of 5 nodes have 2 of their own", ""),
        (
            "site: '4567887654'",
            "1 of 5 nodes have 2 of their own; 8 are of no node",
            "task.data: 1 of 5 nodes have test rows (8 test rows are of no node): clients' accuracies, and the worst tenth of them, are",
        ),
        (
            "site: '5678567899'",
            "they belong to no node; a node's own accuracy is that of its mix of labels",
            "task.partition.by: `site`: none of the test set's ids is one of a node, so test rows belong to no node",
        ),
        (
            "site: '0123401234', y: '0000000000'",
            "5 of 5",
            "task.data: the test set has no row of the classes 1",
        ),
        (
            "site: '0123401234', y: '0122001200'",
            "5 of 5",
            "task.data: only the test set has the classes 2 (3 test rows): nobody can learn them",
        ),
        ("site: '01234'", "5 of 5", "task.data: a test set of 5 rows: accuracy counts in steps of 20 %"),
    ],
)
def test_who_has_test_rows(folder: Path, words: str, said: str, doubt: str) -> None:
    run = of_data(folder, f"{{name: 'sites:tests', {words}}}")
    assert block(run)[2].startswith(f"  tests     {said}")
    assert [one[: len(doubt)] for one in warned(run)] == ([doubt] if doubt else [])


def test_samples_are_told_as_they_came(folder: Path) -> None:
    assert "1 x 2 x 2 numbers each, from 1 to 1 (uint8 [2, 2])" in block(of_data(folder, "{name: 'sites:load', x: bytes}"))[0]
    floats = of_data(folder, "{name: 'sites:load', x: floats}")
    assert "3 x 2 x 2 numbers each, from 0 to 255 (float64 [2, 2, 3])" in block(floats)[0]
    assert [one[:53] for one in warned(floats)] == ["task.data: pictures with numbers up to 255 are taken "]
    assert warned(of_data(folder, "{name: 'sites:load', x: constant}")) == ["task.data: all training rows of x are the same"]


def test_ids_of_another_length_are_named() -> None:
    data = OwnSource(
        lambda: {"x": np.zeros((6, 2)), "y": np.arange(6) % 2, "x_test": np.zeros((2, 2)), "y_test": [0, 1], "site": np.arange(5)}
    )
    with pytest.raises(
        SettingError, match=r"task.partition.by: `site` has shape \[5\], and one id for each of the 6 training samples is due"
    ):
        build_task(TaskSettings(data=data, partition=Natural("site"), model=Logistic(), loss=None), 0, {}, Path())


@pytest.mark.parametrize(
    ("x", "said"),
    [
        (np.full((10, 2), 1e300), "x has NaN or infinity in row 0 .the first row is 0. and in 7 more; 1e.300 is too large for float32"),
        (np.zeros((10, 0)), r"a sample of x has no numbers: shape \[10, 0\]"),
        (np.zeros((2, 10)), "x has 2 samples, y 10; is x transposed"),
        (np.array([["30", "F"]] * 10), "x holds no numbers but <U2 .first: 30."),
        (
            np.where(np.arange(20).reshape(10, 2) % 4 == 3, np.nan, 1),
            "x has NaN or infinity in row 1 .the first row is 0. and in 4 more; all in column 1",
        ),
    ],
)
def test_samples_that_are_no_numbers(x: Any, said: str) -> None:
    data = OwnSource(lambda: {"x": x, "y": np.arange(10) % 2})
    with pytest.raises(SettingError, match=said):
        build_task(TaskSettings(data=data, partition=Iid(2), model=Logistic(), loss=CrossEntropy()), 0, {}, Path())


# Runs that can only come to nothing


def small(folder: Path, *settings: str, without: str = "schedule") -> list[str]:
    """Doubts of the small scenario: jobs of eight nodes take 4.1 to 0.6 s."""
    text = "".join(line for line in TEXT.splitlines(keepends=True) if not line.startswith(without))
    [loaded] = load(write(folder, text), settings)
    return warned(build(loaded, TASKS))


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ([], []),
        (["schedule.deadline=0.5s"], ["schedule.deadline: 500 ms, and the fastest job takes 603 ms: nothing is ever merged"]),
        (["schedule.deadline=2s"], ["schedule.deadline: 2 s is too short for 5 of 8 nodes: their work is always dropped"]),
        (["schedule.deadline=0.5s", "schedule.late=keep"], []),
        (
            ["schedule.deadline=0.5s", "world.compute.jitter={name: log_normal, sigma: 0.1}"],
            ["schedule.deadline: 500 ms, and the fastest job takes 603 ms, as long as nothing varies: nothing is ever merged"],
        ),
        (["world.faults.lost=1"], ["world.faults: all nodes have only jobs that crash, or whose update gets lost: nothing is ever merged"]),
        (
            ["world.faults.crash=1"],
            ["world.faults: all nodes have only jobs that crash, or whose update gets lost: nothing is ever merged"],
        ),
        (
            ["world.faults.lost=[1, 0, 0, 0, 0, 0, 0, 0]"],
            ["world.faults: 1 of 8 nodes have only jobs that crash, or whose update gets lost: nothing is ever learnt from their data"],
        ),
        (
            ["schedule={name: rounds, sampling: {name: bernoulli, chance: 0}}"],
            ["schedule.sampling: all nodes have a chance of 0 of being asked: nothing is ever merged"],
        ),
        (
            ["strategy=fedstale", "schedule={name: rounds, sampling: {name: bernoulli, chance: [0, 1, 1, 1, 1, 1, 1, 1]}}"],
            ["schedule.sampling: 1 of 8 nodes have a chance of 0 of being asked: nothing is ever learnt from their data"],
        ),
        (
            ["world.availability={name: bernoulli, chance: 0}"],
            ["world.availability: all nodes have a chance of 0 of being there: nothing is ever merged"],
        ),
        (["stop={seconds: 0.5 s}"], ["stop.seconds: 500 ms, and the fastest job takes 603 ms: the run ends before anything is merged"]),
        (["train.lr=0"], ["train.lr: 0: nodes learn nothing"]),
        (
            ["strategy=dsgd", "schedule=gossip", "world.faults.lost=1"],
            ["world.faults.lost: no message between peers ever arrives: each learns alone"],
        ),
        (
            ["strategy={name: saf, after: 8}", "train={epochs: 2, batch: 8, steps: null}"],
            ["strategy.after: 8 epochs, and a client trains for about 8 in this run: all of it is FedAvg"],
        ),
        (
            ["strategy={name: saf, after: 1, ago: 9}", "train={epochs: 2, batch: 8, steps: null}"],
            ["strategy.ago: 9 epochs, and a client trains for about 8 in this run: all of it is FedAvg"],
        ),
        (["strategy={name: mesa, after: 3}", "train={epochs: 2, batch: 8, steps: null}"], []),
        (["strategy={name: mesa, strength: 0}"], []),
        (["task.client_weights=2"], []),
        (
            ["task.client_weights=2", "strategy=scaffold"],
            ["task.client_weights: `scaffold` does not weigh clients by them; `strategy.weights: samples` would"],
        ),
        (["task.client_weights=2", "strategy=scaffold", "schedule={name: rounds, cohort: 1, sampling: weighted}"], []),
        (["task.client_weights=2", "strategy=dsgd", "schedule=gossip"], ["task.client_weights: `dsgd` does not weigh clients by them"]),
        (
            ["train={steps: 2, lr: 0.1, clip: {name: adagc, warmup: 2}}"],
            ["train.clip.warmup: 2 steps, of which 2 come together: tensors are never clipped by their own norms"],
        ),
        (["train={steps: 2, lr: 0.1, state: keep, optimizer: adam, clip: {name: adagc, warmup: 2}}"], []),
        (
            ["train={steps: 2, lr: 0.1, state: keep, optimizer: adam, clip: {name: spam, warmup: 4}}", "stop={updates: 16}"],
            ["train.clip.warmup: 4 steps, and a client takes about 4 in this run: none of them is a whole one"],
        ),
        (["train={steps: 2, lr: 0.1, state: keep, optimizer: adam, clip: {name: spam, warmup: 7}}"], []),
    ],
)
def test_settings_that_come_to_nothing(folder: Path, settings: list[str], said: list[str]) -> None:
    assert small(folder, *settings) == said


def test_weights_that_a_method_has_no_use_for(folder: Path) -> None:
    said = small(folder, "task.client_weights=2", "strategy=one_byte", without="train")
    assert said == ["task.client_weights: `one_byte` does not weigh clients by them"]


@pytest.mark.parametrize(("batch", "said"), [(1, "batches of one row"), (4, "")])
def test_batch_norm_needs_a_batch(folder: Path, batch: int, said: str) -> None:
    lines = ["from torch import nn", "class Normed(nn.Sequential):", "    def __init__(self):"]
    lines += ["        super().__init__(nn.Flatten(), nn.Linear(64, 4), nn.BatchNorm1d(4), nn.Linear(4, 10))"]
    (folder / "normed.py").write_text("\n".join(lines))
    assert [said in one for one in small(folder, "task.model=normed:Normed", f"train.batch={batch}")] == ([True] if said else [])


def test_a_run_in_which_nothing_was_merged_has_failed(folder: Path) -> None:
    text = TEXT + "sweep: {variants: {lost: {world: {faults: {lost: 1}}}, good: {}}}\n"
    assert "warning   world.faults: all nodes have only jobs" in call("validate", write(folder, text)).stdout
    shown = call("run", folder / "small.yaml")
    assert shown.exit_code == 1 and "finished 1 of 2" in shown.stdout and "resume with" not in shown.stdout
    assert "  warning   world.faults: all nodes have only jobs" in shown.stdout
    lost, good = find_runs(["small"])
    assert (lost.info["status"], lost.info["reason"]) == ("failed", "nothing merged (4 rounds; 16 jobs begun, 16 lost or cut)")
    assert good.info["status"] == "finished" and "again" not in good.info
    assert "warning: world.faults: all nodes" in (lost.path / "log.txt").read_text()
    again = call("resume", "small")
    assert again.exit_code == 2 and "a resume could only fail again" in again.stderr
    longer = call("resume", "small/lost", "stop.rounds=6")
    assert longer.exit_code == 1 and "nothing merged (6 rounds; 24 jobs begun, 24 lost or cut)" in longer.stdout.replace("\n", " ")


def test_names_are_printed_as_they_are(folder: Path) -> None:
    (folder / "own.py").write_text("import numpy as np\ndef five():\n    return dict(x=np.eye(20), y=np.arange(20) % 2)\n")
    text = (
        TEXT.replace("data: digits", "data: own:five").replace("nodes: 8", "nodes: 4").replace("name: dirichlet, alpha: 0.5", "name: iid")
    )
    assert "  data      own:five: 16 rows" in call("run", write(folder, text)).stdout  # and no picture of a five


def test_a_scenario_with_mistakes_in_its_data_starts_nothing(folder: Path) -> None:
    (folder / "rag.py").write_text("def load():\n    return {'x': [[1, 2], [3]], 'y': [0, 1]}\n")
    message = refused("run", write(folder, TEXT.replace("data: digits", "data: rag:load")))
    assert "small.yaml:1:" in message and "rag:load: `x` is not an array with one entry a sample: it has rows of unequal shapes" in message
