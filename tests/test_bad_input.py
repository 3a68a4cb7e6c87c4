"""What users get wrong in a scenario, its data or on the command line: the message names place and cure, and nothing is started."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from launch import TEXT, refused, write

BODY = TEXT.replace("digits", "mine")


# The scenario's text

SENTENCES = [
    ("unknown key", TEXT.replace("strategy:", "stratgy:"), "small.yaml:2:1: unknown key `stratgy`; did you mean `strategy`?"),
    ("needed key", TEXT.replace("data: digits", "dta: digits"), "small.yaml:1:8: unknown key `task.dta`; did you mean `task.data`?"),
    ("inner key", TEXT.replace("batch: 8", "bach: 8"), "small.yaml:3:19: unknown key `train.bach`; did you mean `train.batch`?"),
    ("strategy", TEXT.replace("fedavg", "fedavgg"), "small.yaml:2:11: strategy: unknown strategy `fedavgg`; did you mean `fedavg`?"),
    ("model", TEXT.replace("logistic", "logistics"), "unknown model `logistics`; did you mean `logistic`?"),
    ("negative rate", TEXT.replace("up: 1 MB/s", "up: -1 MB/s"), "small.yaml:7:17: world.network.up: `-1 MB/s` is negative"),
    ("size for a rate", TEXT.replace("up: 1 MB/s", "up: 2 MB"), "world.network.up: `2 MB` is a size; a rate is due: `2 MB/s`"),
    ("Mbps", TEXT.replace("up: 1 MB/s", "up: 2 Mbps"), "`2 Mbps`"),
    ("no unit", TEXT.replace("latency: 50 ms", "latency: 50"), "small.yaml:7:48: world.network.latency: `50`"),
    ("cohort", TEXT.replace("cohort: 4", "cohort: 9"), "small.yaml:4:34: schedule.cohort: 9 of 8 nodes"),
    ("wait_for", TEXT.replace("cohort: 4", "cohort: 4, wait_for: 5"), "small.yaml:4:47: schedule.wait_for: 5 of a cohort of 4"),
    ("negative lr", TEXT.replace("lr: 0.1", "lr: -0.1"), "small.yaml:3:33: train.lr: `-0.1`: at least 0 is due"),
    ("negative lr by name", TEXT.replace("lr: 0.1", "lr: {name: constant, value: -1}"), "small.yaml:3:57: train.lr: `-1`: at least 0"),
    ("negative lr in time", TEXT.replace("lr: 0.1", "lr: {name: cosine, start: -1, rounds: 9}"), "train.lr.start: `-1`: at least 0"),
    ("negative stop", TEXT.replace("rounds: 4", "rounds: -4"), "small.yaml:8:16: stop.rounds: `-4`: at least 1 is due"),
    ("negative job", TEXT.replace("to: 0.5 s", "to: -0.5 s"), "world.compute.job"),
    ("no data", TEXT.replace("data: digits, ", ""), "small.yaml:1:7: task.data: is needed"),
    ("no strategy", TEXT.replace("strategy: fedavg\n", ""), "strategy: is needed"),
    ("tab", TEXT.replace("  compute", "\tcompute"), "small.yaml:6:1: "),
    ("duplicate", TEXT + "stop: {rounds: 5}\n", "small.yaml:10:1: "),
    ("not closed", TEXT.replace("{rounds: 4}", "{rounds: 4"), "small.yaml:"),
    ("a list", "- task\n- strategy\n", "small.yaml:1:1: "),
    ("empty", "", "small.yaml:1:1: a scenario is a mapping; `task` and `strategy` are needed"),
]


@pytest.mark.parametrize(("text", "said"), [case[1:] for case in SENTENCES], ids=[case[0] for case in SENTENCES])
def test_the_text(folder: Path, text: str, said: str) -> None:
    message = refused("run", write(folder, text).name)
    assert said in message
    assert message.splitlines()[-1].startswith("1 error.") and "fedsim list keys" in message
    assert all(len(line) <= 80 for line in message.splitlines() if "|" in line)  # source lines are cut


def test_tab_and_duplicate_say_what_they_are(folder: Path) -> None:
    assert "tab" in refused("run", write(folder, TEXT.replace("  compute", "\tcompute")).name)
    message = refused("run", write(folder, TEXT + "stop: {rounds: 5}\n").name)
    assert "small.yaml:10:1: `stop` twice: lines 8 and 10" in message


def test_all_mistakes_at_once_with_their_lines(folder: Path) -> None:
    wrong = TEXT.replace("strategy:", "stratgy:").replace("1 MB/s", "2 MB").replace("rounds: 4", "rounds: four")
    message = refused("validate", write(folder, wrong).name)
    placed = [int(line.split(":")[1]) for line in message.splitlines() if line.startswith("small.yaml:")]
    assert placed == sorted(placed) and {2, 7, 8} <= set(placed)
    assert "  2 | stratgy: fedavg\n    | ^^^^^^^\n" in message


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("nothing.yaml", None, "nothing.yaml: can't be read: no such file"),
        ("binary.yaml", b"\xff\xfe\x00task: x", "binary.yaml: can't be read: it is no text in UTF-8"),
        ("folder", "", "folder: can't be read: it is a folder"),
    ],
)
def test_the_file(folder: Path, name: str, content: bytes | str | None, said: str) -> None:
    if content == "":
        (folder / name).mkdir()
    elif isinstance(content, bytes):
        (folder / name).write_bytes(content)
    message = refused("run", name)
    assert message.splitlines()[0] == said


@pytest.mark.parametrize("words", [["run"], ["run", "seed=1"], ["validate"], ["inspect"], ["rnu"], ["run", "--smok"]])
def test_the_words(folder: Path, words: list[str]) -> None:
    assert refused(*words).strip()


def test_settings_of_the_command_line(folder: Path) -> None:
    name = write(folder).name
    assert "command line: unknown key `stratgy`; did you mean `strategy`?" in refused("run", name, "stratgy=fedprox")
    assert "at least 0 is due" in refused("run", name, "seed=-1")
    assert "a rate is due" in refused("run", name, "world.network.up=2 MB")
    assert "seed" in refused("run", name, "seed=0..4")


@pytest.mark.parametrize("command", ["inspect", "plot", "track"])
def test_an_unknown_run(folder: Path, command: str) -> None:
    assert refused(command, "nothing").startswith("no run `nothing`")


# What does not fit together


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (["world=null", "strategy=fedbuff", "schedule={name: buffered, size: 2}"], "take no time, which `buffered` can't order"),
        (["world=null", "schedule={name: ticks, every: 1 s}"], "take no time, which `ticks` can't order"),
        (["strategy=fedstale", "schedule={name: buffered, size: 2}"], "strategy: a client could stand in a merge twice"),
        (["strategy=fedstale", "schedule={name: buffered, size: 2, restart: merge}"], "no known probability"),
        (["strategy=fedstale", "schedule.deadline=1 s"], "no known probability"),
        (
            ["strategy={name: fedfix, weights: naive}", "schedule={name: ticks, every: 1 s}"],
            "under schedule `ticks`: naive weights are not defined",
        ),
        (["strategy=fedfix", "schedule={name: rounds, deadline: 1 s}"], "`strategy.frequencies: estimated` counts them"),
        (["strategy=fedbuff", "schedule={name: buffered, size: 2, max_staleness: -1}"], "max_staleness"),
        (["world=null", "stop.rounds=null", "stop.seconds=1 min"], "stop.seconds: nothing in `world` takes time"),
        (["world=null", "evaluate.every=1 s"], "evaluate.every: nothing in `world` takes time"),
        (["world=null", "evaluate.metrics=[loss, {name: nodes, every: 1 s}]"], "evaluate.metrics.1.every: nothing in `world` takes time"),
        (["evaluate.metrics=[{name: loss, every: 3}]"], "evaluate.metrics.0.every: `3` has no unit; write `3 rounds` or `3 s`"),
        (["evaluate.metrics=[loss]", "stop.accuracy=90%"], "stop.accuracy: never reached: `evaluate.metrics` lacks `accuracy`"),
        (["evaluate.metrics=[loss]", "evaluate.target=90%"], "evaluate.target: never reached"),
        (["evaluate.metrics=[accuracy]", "stop.loss=1"], "stop.loss: never reached"),
        (["schedule={name: rounds, sampling: {name: bernoulli, chance: 0.5}}"], "decides the size of a cohort itself"),
        (["groups={often: 4, rare: rest}", "world.compute.job={often: 1 s}"], "rare"),
        (["groups={often: 7, rare: 7}"], "groups: "),
        (["task.partition.nodes=2000"], "task.partition.nodes: 2000 nodes, but only 1438 training samples"),
        (["engine.device=cuda:77"], "engine.device: "),
        (["name=../elsewhere"], "name: `../elsewhere` can't be a folder's name"),
        (["name=.hidden"], "name: `.hidden` can't be a folder's name"),
    ],
)
def test_what_does_not_fit(folder: Path, settings: list[str], said: str) -> None:
    assert said in refused("run", write(folder).name, *settings)


def test_every_variant_is_checked_before_the_first_starts(folder: Path) -> None:
    sweep = "sweep: {variants: {fine: {seed: 1}, wrong: {strategy: fedstale, schedule: {name: buffered, size: 1}}}}\n"
    message = refused("run", write(folder, TEXT + sweep).name)
    assert "small.yaml:10:" in message and "no known probability" in message


def test_a_second_wrong_file_stops_the_first(folder: Path) -> None:
    assert "nothing.yaml" in refused("run", write(folder).name, "nothing.yaml")


# Data


def arrays(folder: Path, **changes: object) -> None:
    draw = np.random.default_rng(0)
    given: dict[str, object] = {"x": draw.normal(size=(40, 3)), "y": np.arange(40) % 2} | changes
    there: dict[str, Any] = {name: array for name, array in given.items() if array is not None}
    np.savez(folder / "mine.npz", **there)


NAN = np.ones((40, 3))
NAN[7, 1] = np.nan


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"y": None}, "small.yaml:1:14: task.data: "),
        ({"x": NAN}, "x has NaN or infinity in row 7"),
        ({"y": np.zeros(39, dtype=int)}, "x has 40 samples, y 39"),
        ({"x": np.zeros((0, 3)), "y": np.zeros(0, dtype=int)}, "no samples"),
        ({"x": np.array(["a"] * 40)}, "no numbers"),
        ({"y": np.where(np.arange(40) == 3, np.nan, 0.5)}, "y has NaN or infinity in row 3"),
    ],
)
def test_data(folder: Path, changes: dict[str, object], said: str) -> None:
    arrays(folder, **changes)
    assert said in refused("run", write(folder, BODY.replace("dirichlet, alpha: 0.5", "iid")).name)


def test_labels_missing_says_so(folder: Path) -> None:
    arrays(folder, y=None)
    assert "labels missing: mine has no array y" in refused("run", write(folder, BODY).name)


def test_no_npz(folder: Path) -> None:
    (folder / "mine.npz").write_text("no archive")
    assert "mine.npz can't be read as an .npz file" in refused("run", write(folder, BODY).name)


def test_fedsim_data_missing(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("FEDSIM_DATA", raising=False)
    message = refused("run", write(folder, TEXT.replace("digits", "mnist")).name)
    assert "small.yaml:1:14: task.data: no data `mnist`" in message and "FEDSIM_DATA is not set" in message
    monkeypatch.setenv("FEDSIM_DATA", str(folder / "none"))
    assert f"FEDSIM_DATA ({folder / 'none'})" in refused("run", write(folder, TEXT.replace("digits", "mnist")).name)
