"""Users' own parts, nested parts, and what `schema`, `describe` and `keys` say."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import pytest

from fedsim.base.errors import ScenarioError, SettingError
from fedsim.scenario import describe, keys, load, schema, slots, trust
from fedsim.scenario.parts import Key
from fedsim.scenario.read import BAD, Reader
from fedsim.scenario.tree import Problems, parse
from fedsim.scenario.write import tree
from fedsim.settings.part import Part, setting
from fedsim.settings.values import Count, Share, blocks

MODULE = '''
from dataclasses import dataclass
from torch import nn
from fedsim import setting
from fedsim.schedule import Rounds
from strategies.fedavg import FedAvg

class Net(nn.Module):
    def __init__(self, input_shape: tuple, outputs: int, width: int, wide: bool = False):
        super().__init__()

class Untyped(nn.Module):
    def __init__(self, width):
        super().__init__()

def load(file: str, scale: float = 1.0):
    return {}

@dataclass(frozen=True)
class Mine(FedAvg):
    """My method."""

    patience: int = setting(3, "rounds", ge=1)
    schedule: Rounds = Rounds(wait_for=2)

def broken(): ...
'''
OWN = (
    "task: {{data: {{name: {0}:load, file: wards.csv}}, model: {{name: {0}:Net, width: 32}}}}\nstrategy: {{name: {0}:Mine, patience: 5}}\n"
)


@dataclass(frozen=True)
class Wrap(Part):
    """A codec-like part that holds others."""

    slot = "wrap"
    default = "leaf"


@dataclass(frozen=True)
class Leaf(Wrap):
    level: int = setting(1, "how much", ge=1)
    share: Share = setting(0.5, "part of it")

    def __post_init__(self) -> None:
        if self.level == 13:
            raise ValueError("13 brings bad luck")
        if self.level == 14:
            raise SettingError("share", "does not go with 14")


@dataclass(frozen=True)
class Chain(Wrap):
    parts: tuple[Wrap, ...] = setting(help="one after the other")
    inner: Wrap | None = setting(Leaf(level=7), "inside")
    mode: Literal["a", "b"] | int = setting("a", "how")


def read(text: str, key: Key | None = None) -> tuple[object, list[str]]:
    problems = Problems()
    node = parse(text, "x.yaml", problems)
    assert node is not None
    value = Reader(problems).value(node, key or Key("top", Wrap), "top")
    return value, [f"{problem.line}:{problem.column} {problem.message}" for problem in problems]


def test_parts_nest_inherit_and_are_written_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trust, "_trusted", (__name__,))
    value, problems = read("{name: chain, parts: [leaf, {level: 2}], inner: {share: 5 %}, mode: 4}")
    assert problems == []
    assert value == Chain((Leaf(), Leaf(level=2)), Leaf(level=7, share=0.05), 4)
    assert read("{name: chain, parts: [], inner: none}")[0] == Chain((), None)
    for part in (value, Chain((), None, "b")):
        node = tree(part, Wrap)
        assert Reader(Problems()).value(node, Key("top", Wrap), "top") == part


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("leave", "1:1 top: unknown wrap `leave`; did you mean `leaf`?"),
        ("{name: chain, parts: [{level: 0}]}", "1:31 top.parts.0.level: `0`: at least 1 is due"),
        ("{name: chain, parts: leaf}", "1:22 top.parts: a list is due: `[leaf]`"),
        ("{name: chain, parts: [null]}", "1:23 top.parts.0: `null` has no place in a list"),
        ("{name: chain}", "1:1 top.parts: is needed (one after the other)"),
        ("{name: chain, parts: [], mode: c}", "1:32 top.mode: `c` is no whole number, or `a`, `b`"),
        ("[leaf]", "1:1 top: a wrap is due, not a list"),
        ("{level: 13}", "1:1 top: 13 brings bad luck"),
        ("{level: 14, share: 1 %}", "1:20 top.share: does not go with 14"),
    ],
)
def test_problems_of_parts_keep_their_place(text: str, problem: str) -> None:
    assert read(text) == (BAD, [problem])


def test_own_parts_are_read_by_the_types_of_their_arguments(tmp_path: Path) -> None:
    (tmp_path / "own_parts.py").write_text(MODULE)
    (tmp_path / "mine.yaml").write_text(OWN.format("own_parts"))
    (loaded,) = load(tmp_path / "mine.yaml")
    scenario = loaded.scenario
    assert scenario.task.model.settings == {"width": 32, "wide": False}  # type: ignore[attr-defined]
    assert scenario.task.data.settings == {"file": "wards.csv", "scale": 1.0}  # type: ignore[attr-defined]
    assert (scenario.strategy.patience, scenario.strategy.schedule.wait_for) == (5, 2)  # type: ignore[attr-defined]
    assert loaded.own == {"own_parts.py": tmp_path / "own_parts.py"}
    assert (loaded.flat["task.model"], loaded.flat["task.model.width"]) == ("own_parts:Net", "32")
    (tmp_path / "again.yaml").write_text(loaded.resolved)
    (again,) = load(tmp_path / "again.yaml")
    assert (again.scenario, again.hash) == (scenario, loaded.hash)


def test_problems_of_own_parts(tmp_path: Path) -> None:
    (tmp_path / "bad_parts.py").write_text(MODULE)
    (tmp_path / "raises_parts.py").write_text("1 / 0\n")
    (tmp_path / "mine.yaml").write_text(
        "task:\n  data: {name: bad_parts:load, file: x, scale: two}\n  model: bad_parts:Untyped\n  partition: bad_parts:Net\n"
        "  loss: bad_parts:absent\nstrategy: raises_parts:Mine\nuplink: no_such_module:Codec\n"
    )
    with pytest.raises(ScenarioError) as error:
        load(tmp_path / "mine.yaml")
    assert [problem.message for problem in error.value.problems] == [
        "task.data.scale: `two` is no number",
        "task.model: `bad_parts:Untyped`: its argument `width` has no type, so it can't be set",
        "task.partition: `bad_parts:Net` can't be a partition; a dataclass that derives from fedsim.data.partition.Partition is due",
        "task.loss: `bad_parts` has no `absent`; a loss is due",
        "strategy: `raises_parts` can't be imported: ZeroDivisionError: division by zero (raises_parts.py:1)",
        "uplink: `no_such_module` can't be imported: ModuleNotFoundError: No module named 'no_such_module'",
    ]


def test_data_by_file_and_by_hub_name(tmp_path: Path) -> None:
    for name, flat in (
        ("mnist", {"task.data": "npz", "task.data.file": "mnist"}),
        ("xray.npz", {"task.data": "npz", "task.data.file": "xray.npz"}),
        ("hub:ylecun/mnist", {"task.data": "hub", "task.data.dataset": "ylecun/mnist"}),
    ):
        (tmp_path / "s.yaml").write_text(f"task: {{data: '{name}'}}\nstrategy: fedavg\n")
        (loaded,) = load(tmp_path / "s.yaml")
        assert flat.items() <= loaded.flat.items()


def test_blocks_are_the_ids_of_groups_in_the_written_order() -> None:
    half, third = Count(share=0.5), Count(share=0.33)
    assert blocks({"often": half, "rare": "rest"}, 24) == {"often": range(12), "rare": range(12, 24)}
    assert blocks({"a": Count(number=3), "b": "rest", "c": Count(number=1)}, 6) == {"a": range(3), "b": range(3, 5), "c": range(5, 6)}
    assert [len(ids) for ids in blocks({"a": third, "b": third, "c": Count(share=0.34)}, 10).values()] == [3, 4, 3]
    assert blocks({}, 5) == {}
    for groups, message in (
        ({"a": half}, "groups of 5 nodes in all, but there are 10; one may be `rest`"),
        ({"a": "rest", "b": "rest"}, "`rest` can be said once, not for a and b"),
        ({"a": Count(number=10), "b": "rest"}, r"group `b` has no node \(10 in all\)"),
    ):
        with pytest.raises(ValueError, match=message):
            blocks(groups, 10)  # type: ignore[arg-type]


def test_what_there_is_can_be_listed() -> None:
    assert {"strategy", "schedule", "codec", "compute", "spread", "curve", "metric", "sampling", "topology"} <= set(slots())
    (rounds,) = describe("rounds")
    assert (rounds.slot, rounds.source) == ("schedule", "McMahan et al. 2017")
    cohort = rounds.settings[0]
    assert (cohort.name, cohort.type, cohort.default) == ("cohort", "number, share or all", "at most 10")
    assert {"fedavg", "fedprox", "dsgd"} <= {part.name for part in describe("strategy")}
    with pytest.raises(ValueError, match="nothing is called `fedbuf`; did you mean `fedbuff`"):
        describe("fedbuf")
    listed = {info.name: info for info in keys()}
    assert (listed["task.data"].default, listed["stop.seconds"].type, listed["schedule"].default) == (None, "time", "the method's")


def test_the_schema_knows_every_key_and_part() -> None:
    found = json.loads(json.dumps(schema()))
    assert set(found["properties"]) == {info.name.split(".")[0] for info in keys()} | {"extends"}
    assert set(found["$defs"]) == set(slots()) | {"partial"}
    named = [one for one in found["$defs"]["schedule"]["anyOf"] if one.get("properties", {}).get("name") == {"const": "ticks"}]
    assert len(named) == 1
    assert named[0]["properties"]["every"]["default"] == "1 s"
    batch = found["properties"]["train"]["anyOf"][0]["properties"]["batch"]
    assert {"type": "integer", "minimum": 1} in batch["anyOf"]
