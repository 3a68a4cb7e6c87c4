"""Whole files: problems with their places, merging, overrides, and the resolved text."""

import sys
from pathlib import Path

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from fedsim.base.errors import ScenarioError, SettingError
from fedsim.scenario import Loaded, load, render, tree
from fedsim.settings.values import Constant, Exponential

ROOT = Path(__file__).parent.parent
PLAIN = "task: {data: digits}\nstrategy: fedavg\n"


def run_of(folder: Path, text: str, *overrides: str) -> Loaded:
    file = folder / "test.yaml"
    file.write_text(text)
    (loaded,) = load(file, overrides)
    return loaded


def problems_of(folder: Path, text: str, *overrides: str, smoke: bool = False) -> list[str]:
    """`line:column message` of every problem, `!column` on the command line."""
    file = folder / "test.yaml"
    file.write_text(text)
    with pytest.raises(ScenarioError) as error:
        load(file, overrides, smoke)
    return [f"{p.line}:{p.column} {p.message}" if p.line else f"!{p.column} {p.message}" for p in error.value.problems]


def test_all_problems_are_reported_at_once_with_their_places(tmp_path: Path) -> None:
    text = (
        "task: {data: digits, partition: {name: dirichlet, nodes: 0}}\n"
        "stratgy: fedavg\n"
        "world: {network: {up: 2 MB, down: 10 Mbps}}\n"
        "evaluate: {smoth: 2, metrics: [acuracy, loss]}\n"
        "stop: {seconds: 1:30, rounds: 010}\n"
    )
    assert problems_of(tmp_path, text) == [
        "1:33 task.partition.alpha: is needed (small: few classes a node; large: near iid)",
        "1:58 task.partition.nodes: `0`: at least 1 and at most 10000000 is due",
        "2:1 unknown key `stratgy`; did you mean `strategy`?",
        "3:23 world.network.up: `2 MB` is a size; a rate is due: `2 MB/s`",
        "3:35 world.network.down: `10 Mbps`: bits to some tools, bytes to others; write `10 Mbit/s` or `10 MB/s`",
        "4:12 unknown key `evaluate.smoth`; did you mean `evaluate.smooth`?",
        "4:32 evaluate.metrics.0: unknown metric `acuracy`; did you mean `accuracy`?",
        "5:17 stop.seconds: `1:30` is refused; `90 s`?",
        "5:31 stop.rounds: `010`: 10, or octal? write `10`",
    ]


def test_problems_are_shown_with_source_line_and_carets(tmp_path: Path) -> None:
    file = tmp_path / "phones.yaml"
    file.write_text("task: {data: digits}\nstrategy: fedavg\nstratgy: fedavg\n")
    with pytest.raises(ScenarioError) as error:
        load(file, ["strategy.server_lr=yes", "sed=3"])
    assert render(error.value).splitlines() == [
        f"{file}:3:1: unknown key `stratgy`; did you mean `strategy`?",
        "  3 | stratgy: fedavg",
        "    | ^^^^^^^",
        "command line: unknown key `sed`; did you mean `seed`?",
        "   | sed=3",
        "   | ^^^",
        "command line: strategy.server_lr: `yes` is no number",
        "   | strategy.server_lr=yes",
        "   |                    ^^^",
        "3 errors. All keys: fedsim list keys; completion in editors: fedsim schema",
    ]


def test_only_the_first_problems_are_shown(tmp_path: Path) -> None:
    with pytest.raises(ScenarioError) as error:
        run_of(tmp_path, PLAIN + "".join(f"wrong{number}: 1\n" for number in range(25)))
    lines = render(error.value).splitlines()
    assert len(lines) == 20 * 3 + 1
    assert lines[-1].startswith("25 errors, the first 20 shown.")


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("task:\n\tdata: digits\n", "2:1 a tab; indent and separate with spaces"),
        (PLAIN + "seed: 1\nseed: 2\n", "4:1 `seed` twice: lines 3 and 4"),
        ("a: &a {data: digits}\ntask: {<<: *a}\n", "2:8 `<<` is refused; use `extends`"),
        (PLAIN + "seed: !!int 3\n", "3:7 tag `tag:yaml.org,2002:int`: types come from the settings, tags are refused"),
        (PLAIN + "---\nseed: 1\n", "3:1 a second document; a file holds one scenario"),
        (PLAIN + "stop: {rounds:5}\n", "3:8 `rounds:5`: a space is due after the colon"),
        (PLAIN + "seed:\n", "3:6 no value; `null` takes the default, `none` is without"),
        (PLAIN + "task: {data: [digits}\n", "3:21 no YAML: expected ',' or ']', but got '}' while parsing a flow sequence"),
        ("- a\n", "1:1 a scenario is a mapping; `task` and `strategy` are needed"),
        ("", "1:1 a scenario is a mapping; `task` and `strategy` are needed"),
        (PLAIN + "seed: *x\n", "3:7 no anchor `&x` above"),
    ],
)
def test_form_of_the_file(tmp_path: Path, text: str, problem: str) -> None:
    assert problem in problems_of(tmp_path, text)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("strategy: fedprocks\ntask: {data: digits}\n", "1:11 strategy: unknown strategy `fedprocks`; did you mean `fedprox`?"),
        (PLAIN.replace("digits", "digts"), "1:14 task.data: unknown data `digts`; did you mean `digits`?"),
        (PLAIN + "schedule: {cohort: 1.0}\n", "3:20 schedule.cohort: `1.0`: one, or all? write `1` or `all`"),
        (PLAIN + "schedule: {cohort: 11}\n", "3:20 schedule.cohort: 11 of 10 nodes"),
        (PLAIN + "evaluate: {metrics: loss}\n", "3:21 evaluate.metrics: a list is due: `[loss]`"),
        (PLAIN + "seed: [1, 2]\n", "3:7 seed: one value is due, not a list; a `sweep` runs several"),
        (PLAIN + "train: 5\n", "3:8 train: a mapping is due: `{epochs: ...}`"),
        (PLAIN + "train: {batch: most}\n", "3:16 train.batch: `most` is no whole number, or `all`"),
        (PLAIN + "train: {epochs: 1, steps: 2}\n", "3:8 train: `epochs` and `steps` exclude each other"),
        (PLAIN + "world: {network: {up: -1 MB/s}}\n", "3:23 world.network.up: `-1 MB/s` is negative"),
        (PLAIN + "world: {network: {up: [1 MB/s, 2 MB/s]}}\n", "3:23 world.network.up: a list of 2 for 10 nodes"),
        (PLAIN + "groups: {a: 50 %, b: 40 %}\n", "3:9 groups: groups of 9 nodes in all, but there are 10; one may be `rest`"),
        (PLAIN + "groups: {a: 50 %, b: rest}\nworld: {compute: {job: {a: 1 s}}}\n", "4:24 world.compute.job: no value for group `b`"),
        (
            PLAIN + "groups: {old: 50 %, new: rest}\nworld: {compute: {job: {olt: 1 s, new: 1 s}}}\n",
            "4:25 world.compute.job: unknown group `olt`; did you mean `old`?; a spread over nodes has a `name`",
        ),
        (
            "task: {data: digits}\nstrategy: {name: fedavg, schedule: ring}\n",
            "2:26 unknown key `strategy.schedule`; `schedule` stands beside `strategy`, not in it",
        ),
        (
            "task: {data: {name: digits, augment: [flip]}}\nstrategy: fedavg\n",
            "1:29 unknown key `task.data.augment`; `augment` stands beside `task.data`, as `task.augment`",
        ),
        (PLAIN + "extends: none.yaml\n", "3:10 `none.yaml` can't be read: no such file"),
    ],
)
def test_problems_of_settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, problem: str) -> None:
    monkeypatch.chdir(tmp_path)
    file = Path("test.yaml")
    assert problem in problems_of(Path(), text), file


def test_resolved_text_says_where_each_setting_came_from_and_loads_to_the_same_run(tmp_path: Path) -> None:
    text = (
        PLAIN + "groups: {a: 50 %, b: rest}\nworld: {compute: {step: {a: 1 ms, b: {name: uniform, from: 1 ms, to: 2 s}}}}\nabout: 'x: #1'\n"
    )
    first = run_of(tmp_path, text, "train.lr=0.1", "evaluate.metrics+=nodes")
    lines = [line.strip() for line in first.resolved.splitlines()]
    assert "a: 50 %  # test.yaml:3" in lines
    assert "lr: 0.1  # command line" in lines
    assert "cohort: at most 10  # default of fedavg" in lines
    assert 'about: "x: #1"  # test.yaml:5' in lines
    (tmp_path / "again").mkdir()
    second = run_of(tmp_path / "again", first.resolved)
    assert (second.scenario, second.hash, second.flat) == (first.scenario, first.hash, first.flat)
    assert first.flat["strategy"] == "fedavg"
    assert (first.flat["schedule.cohort"], first.flat["world.compute.step.b.to"]) == ("10", "2 s")


def test_what_all_metrics_may_set_is_written_where_it_is_set(tmp_path: Path) -> None:
    text = PLAIN + "evaluate: {metrics: [loss, {name: nodes, every: 50 rounds}]}\n"
    first = run_of(tmp_path, text)
    lines = [line.strip() for line in first.resolved.splitlines()]
    assert "- loss  # test.yaml:3" in lines and "every: 50 rounds  # test.yaml:3" in lines
    assert run_of(tmp_path, first.resolved).scenario == first.scenario and first.hash != run_of(tmp_path, PLAIN).hash
    assert run_of(tmp_path, PLAIN).flat["evaluate.metrics"] == "[accuracy, loss, clients]"


@settings(max_examples=30)
@given(
    lr=st.one_of(st.builds(Constant, st.floats(0, 10)), st.builds(Exponential, st.floats(0, 10), st.floats(0.001, 2))),
    cohort=st.one_of(st.integers(1, 10).map(str), st.sampled_from(["all", "10 %"])),
    about=st.text().filter(lambda text: text != "null"),
    seed=st.integers(0, 2**62),
    up=st.lists(st.integers(1, 10**12), min_size=10, max_size=10),
)
def test_resolved_text_of_any_settings_loads_again(tmp_path_factory: pytest.TempPathFactory, lr, cohort, about, seed, up) -> None:  # type: ignore[no-untyped-def]
    import yaml  # type: ignore[import-untyped]

    written = f"{lr.value}" if isinstance(lr, Constant) else {"name": "exponential", "start": lr.start, "factor": lr.factor}
    network = {"network": {"up": [f"{value} B/s" for value in up]}}
    tree = {"task": {"data": "digits"}, "strategy": "fedavg", "train": {"lr": written}, "seed": seed, "world": network, "about": about}
    text = yaml.safe_dump(tree | {"schedule": {"cohort": cohort}}, allow_unicode=True)
    first = run_of(tmp_path_factory.mktemp("one"), text)
    second = run_of(tmp_path_factory.mktemp("two"), first.resolved)
    assert (first.scenario.train.lr, first.scenario.about) == (lr, about)
    assert (second.scenario, second.hash) == (first.scenario, first.hash)


def test_the_hash_is_that_of_the_question(tmp_path: Path) -> None:
    base = run_of(tmp_path, PLAIN).hash
    assert len(base) == 6
    for same in ("name: x\n", "about: y\n", "stop: {rounds: 3}\n", "track: none\n", "engine: {threads: 2}\n", "train: {batch: 32}\n"):
        assert run_of(tmp_path, PLAIN + same).hash == base
    for other in ("seed: 1\n", "train: {batch: 31}\n", "uplink: float16\n"):
        assert run_of(tmp_path, PLAIN + other).hash != base


def test_later_mistakes_are_placed_where_their_setting_stands(tmp_path: Path) -> None:
    loaded = run_of(tmp_path, PLAIN + "schedule: {wait_for: 50}\n")
    problem = loaded.problem(SettingError("schedule.wait_for", "50 of 10"))
    assert (problem.line, problem.column, problem.message) == (3, 22, "schedule.wait_for: 50 of 10")
    assert problem.text == "schedule: {wait_for: 50}"
    problem = loaded.problem(SettingError("schedule.cohort", "too many"))
    assert (problem.file, problem.line, problem.column) == (str(tmp_path / "test.yaml"), 3, 11)
    assert loaded.problem(SettingError("world.network", "x")).file == str(tmp_path / "test.yaml")


def test_a_missing_file_is_a_problem(tmp_path: Path) -> None:
    with pytest.raises(ScenarioError, match="no such file"):
        load(tmp_path / "absent.yaml")


def test_the_folder_of_a_scenario_comes_last_on_the_import_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", [*sys.path])
    (tmp_path / "half_of_it.py").write_text("from strategies.fedavg import FedAvg\n")
    run_of(tmp_path, PLAIN.replace("fedavg", "half_of_it:FedAvg"))
    run_of(tmp_path, PLAIN.replace("fedavg", "half_of_it:FedAvg"))
    assert sys.path.count(str(tmp_path)) == 1
    assert sys.path[-1] == str(tmp_path)


def test_a_method_that_does_not_go_with_a_schedule_is_told_there(tmp_path: Path) -> None:
    text = "task: {data: digits}\nstrategy: sketched\nschedule: {name: buffered, size: 2}\nstop: {rounds: 2}\n"
    [problem] = problems_of(tmp_path, text)
    assert problem.startswith("3:11 schedule: sketches of different rounds don't add up")


def test_both_readers_of_yaml_see_the_same_trees() -> None:
    files = sorted((Path(__file__).resolve().parent.parent / "scenarios").rglob("*.yaml"))
    texts = {str(file): file.read_text() for file in files if not set("?>|") & set(file.read_text())}
    assert len(texts) > 20
    for name, text in texts.items():
        problems = tree.Problems()
        fast, slow = (tree._tree(text, name, problems, True, loader) for loader in (tree.FAST, yaml.SafeLoader))
        assert fast == slow and not problems
