"""The command line as a user meets it: help, lists, the schema, overrides, sweeps, and what start-up costs."""

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from launch import TEXT, call, refused, write
from rich.console import Console

from fedsim import __version__
from fedsim.report.listing import listing
from fedsim.report.screen.progress import Progress, describe
from fedsim.run.building import Tasks, build
from fedsim.run.folders import find_runs
from fedsim.scenario import keys, load, slots
from fedsim.scenario.catalog_cache import overview

COMMANDS = [
    "run",
    "sweep",
    "resume",
    "replay",
    "validate",
    "tune",
    "new",
    "list",
    "schema",
    "inspect",
    "compare",
    "plot",
    "report",
    "track",
    "ui",
    "bench",
    "profile",
    "certs",
    "doctor",
    "serve",
    "join",
    "flower",
    "watch",
]
SCENARIOS = sorted((Path(__file__).resolve().parent.parent / "scenarios").rglob("*.yaml"))


# Help and start-up


def test_help() -> None:
    shown = call("--help")
    assert shown.exit_code == 0
    assert re.findall(r"^  (\w+)  +\w", shown.stdout, re.M) == COMMANDS
    assert "..." not in shown.stdout.replace("[ARGS]...", "")  # nothing is cut


@pytest.mark.parametrize("command", COMMANDS)
def test_help_of_a_command(command: str) -> None:
    shown = call(command, "--help")
    assert shown.exit_code == 0 and re.match(rf"Usage: \S+ {command} \[OPTIONS\]", shown.stdout)
    assert "\\[" not in shown.stdout and all(len(line) <= 80 for line in shown.stdout.splitlines())
    if command in ("run", "sweep", "validate"):
        assert "KEY=VALUE: settings" in shown.stdout
    if command in ("resume", "replay", "inspect", "compare", "plot", "report", "track"):
        assert "RUN: a folder" in shown.stdout


def test_version() -> None:
    assert call("--version").stdout == f"fedsim {__version__}\n"


def test_without_words_help_is_shown() -> None:
    shown = call()
    assert shown.exit_code == 2 and "Commands:" in shown.output


@pytest.mark.parametrize(
    ("words", "absent"),
    [
        (
            ["--help"],
            [
                "torch",
                "numpy",
                "pydantic",
                "yaml",
                "mlflow",
                "matplotlib",
                "pyarrow",
                "sklearn",
                "flwr",
                "grpc",
                "cryptography",
                "fedsim.run.runner",
            ],
        ),
        (["inspect", "nothing"], ["torch", "mlflow", "matplotlib", "sklearn", "flwr"]),
        (["compare", "nothing"], ["torch", "mlflow", "matplotlib", "sklearn", "flwr", "scipy", "pandas"]),
        (["run", "nothing.yaml"], ["torch", "numpy"]),
        (["validate", "nothing.yaml"], ["mlflow", "matplotlib", "sklearn", "flwr", "fedsim.bench"]),
    ],
)
def test_what_is_imported(folder: Path, words: list[str], absent: list[str]) -> None:
    code = f"""import sys
from fedsim.commands.cli import app
try:
    app({words!r})
finally:
    print({{*{absent!r}}} & {{*sys.modules}}, file=sys.stderr)"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=folder, check=False)
    assert done.stderr.splitlines()[-1] == "set()", done.stderr


# List


def test_list_of_all() -> None:
    lines = call("list").stdout.splitlines()
    assert [line.split()[0] for line in lines if not line.startswith(" ")] == [*slots(), "more:"]
    assert any(re.fullmatch(r"schedule +rounds, buffered, ticks, gossip, pairwise, hierarchy, coded", line) for line in lines)


def test_list_of_a_slot() -> None:
    shown = call("list", "strategy").stdout
    assert re.search(r"^fedstale +server +beta=0.5 .* Rodio & Neglia 2024$", shown, re.M)
    assert re.search(r"^dsgd +peers +order=adapt_then_combine", shown, re.M)


def test_list_of_a_part() -> None:
    shown = call("list", "fedstale").stdout
    assert shown.startswith("fedstale (strategy)  Rodio & Neglia 2024\n")
    assert re.search(r"^  beta +number, >= 0, <= 1 +0.5 +how much", shown, re.M)


def test_a_name_in_several_slots() -> None:
    heads = re.findall(r"^bernoulli \((\w+)\)", call("list", "bernoulli").stdout, re.M)
    assert sorted(heads) == ["availability", "sampling"]


def test_list_of_keys() -> None:
    names = {line.split()[0] for line in call("list", "keys").stdout.splitlines() if not line.startswith(" ")}
    assert names == {key.name for key in keys()} and {"task.data", "stop.seconds", "evaluate.target", "sweep.seeds"} <= names


def test_list_of_scenarios(folder: Path) -> None:
    assert call("list", "scenarios").stdout == "no scenario lies here; try: fedsim new scenario NAME\n"
    write(folder, "# Few clients (Li et al. 2020): they\n# differ. More.\n" + TEXT)
    write(folder, "a: list of things", "other.yaml")
    (folder / "scenarios").mkdir()
    write(folder, TEXT, "scenarios/plain.yaml")
    assert listing("scenarios").splitlines() == ["scenarios/plain.yaml", "small.yaml            Few clients (Li et al. 2020): they differ"]


def test_list_of_nothing_gives_the_nearest() -> None:
    result = call("list", "fedstal")
    assert result.exit_code == 2 and "did you mean `fedstale`?" in result.stderr and not result.stdout


def test_lists_fit_and_lose_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    known = overview()
    monkeypatch.setattr("fedsim.report.listing.overview", lambda: known)  # read once
    for what in ("", "keys", *slots(), "fedbuff", "rounds"):
        wide = sorted("".join(listing(what, 1000).split()))
        for width in (60, 80, 120):
            narrow = listing(what, width)
            assert max(map(len, narrow.splitlines())) <= width
            assert sorted("".join(narrow.split())) == wide


# Schema


def problems(schema: dict[str, Any], value: Any, root: dict[str, Any], at: str = "") -> Iterator[str]:
    """Where a value breaks a JSON Schema, for the words that ours uses."""
    assert set(schema) <= WORDS
    if "$ref" in schema:
        yield from problems(root["$defs"][schema["$ref"].removeprefix("#/$defs/")], value, root, at)
    if "anyOf" in schema:
        tried = [list(problems(one, value, root, at)) for one in schema["anyOf"]]
        yield from min(tried, key=len) if all(tried) else []
    kinds = schema.get("type", [])
    if kinds and not any(isinstance(value, TYPES[kind]) for kind in ([kinds] if isinstance(kinds, str) else kinds)):
        yield f"{at}: {value!r} is no {kinds}"
        return
    if value not in schema.get("enum", [value]) or value != schema.get("const", value):
        yield f"{at}: {value!r}"
    if isinstance(value, str) and "pattern" in schema and not re.search(schema["pattern"], value):
        yield f"{at}: {value!r} is not like {schema['pattern']}"
    if isinstance(value, dict):
        yield from (f"{at}: {name} is needed" for name in schema.get("required", []) if name not in value)
        for name, inner in value.items():
            rest = schema.get("additionalProperties", True)
            deeper = schema.get("properties", {}).get(name, rest)
            if deeper is False:
                yield f"{at}: {name} is unknown"
            elif isinstance(deeper, dict):
                yield from problems(deeper, inner, root, f"{at}.{name}")
    if isinstance(value, list):
        for place, inner in enumerate(value):
            yield from problems(schema.get("items", {}), inner, root, f"{at}.{place}")
    if isinstance(value, int | float) and not isinstance(value, bool):
        low, above = schema.get("minimum", value), schema.get("exclusiveMinimum", value - 1)
        high, below = schema.get("maximum", value), schema.get("exclusiveMaximum", value + 1)
        if not (low <= value <= high and above < value < below):
            yield f"{at}: {value} is out of range"


TYPES: dict[str, Any] = {
    "object": dict, "array": list, "string": str, "integer": int, "number": (int, float), "boolean": bool, "null": type(None)
}  # fmt: skip
WORDS = {"$schema", "title", "$defs", "$ref", "anyOf", "type", "enum", "const", "pattern", "required", "properties", "items", "description"}
WORDS |= {"additionalProperties", "minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "default"}


@pytest.fixture(scope="module")
def schema() -> dict[str, Any]:
    shown = call("schema")
    assert shown.exit_code == 0
    content: dict[str, Any] = json.loads(shown.stdout)
    return content


def test_the_schema_accepts_what_is_shipped(schema: dict[str, Any]) -> None:
    assert schema["$schema"].startswith("https://json-schema.org/")
    for text in [TEXT, *(file.read_text() for file in SCENARIOS)]:
        assert not list(problems(schema, yaml.safe_load(text), schema))


@pytest.mark.parametrize("text", ["stratgy: fedavg", "train: {bach: 3}", "seed: -1", "strategy: {name: fedavg, beta: 1}", "stop: 100"])
def test_the_schema_refuses(schema: dict[str, Any], text: str) -> None:
    assert list(problems(schema, yaml.safe_load(TEXT) | yaml.safe_load(text), schema))


def test_every_key_has_its_help_in_the_schema(schema: dict[str, Any]) -> None:
    assert all(inner.get("description") for inner in schema["properties"].values())


def nones(part: dict[str, Any], root: dict[str, Any]) -> int:
    """How often a schema offers the word `none` at its place."""
    below = [root["$defs"][part["$ref"].removeprefix("#/$defs/")]] if "$ref" in part else part.get("anyOf", [])
    return part.get("enum", []).count("none") + sum(nones(inner, root) for inner in below)


def test_none_is_offered_once_and_only_where_it_can_be_said(schema: dict[str, Any]) -> None:
    task, stop = (schema["properties"][key]["anyOf"][0]["properties"] for key in ("task", "stop"))
    offered = [schema["properties"]["uplink"], task["loss"], stop["rounds"]]
    refused = [*(schema["properties"][key] for key in ("strategy", "schedule", "engine")), *(task[key] for key in ("data", "model"))]
    assert [nones(one, schema) for one in offered] == [1] * len(offered)
    assert [nones(one, schema) for one in refused] == [0] * len(refused)


# Validate, overrides, sweep


def test_validate_says_what_would_be_done(folder: Path) -> None:
    shown = call("validate", write(folder).name, "strategy=fedprox")
    assert shown.exit_code == 0 and not Path("runs").exists()
    assert re.fullmatch(
        r"small  seed 0\n"
        r"  data      digits: 1,438 rows for training, 359 for testing; 1 x 8 x 8 numbers each, from 0 to 1 \(float32 \[8, 8, 1\]\)\n"
        r"  targets   classification: 10 classes; 139 to 146 rows each, by cross_entropy \(y: int64\)\n"
        r"  tests     they belong to no node; a node's own accuracy is that of its mix of labels\n"
        r"  nodes     8; samples a node \d+ to \d+, median [\d.]+\n"
        r"  sizes     coefficient of variation 0\.\d\d, Gini 0\.\d\d, as \d\.\d of 8 equal nodes\n"
        r"  labels    Hellinger 0\.\d\d \(0\.\d\d to 0\.\d\d\), pairs 0\.\d\d; Jensen-Shannon 0\.\d\d bits\n"
        r"  model     650 parameters; .*\n"
        r"  a job     603 ms to 4.1 s simulated; \d.\d\d kB down, \d.\d\d kB up\n"  # 0.5 s of work, 100 ms and 3.3 ms of travel
        r"  schedule  rounds; strategy fedprox; hash [0-9a-f]{6}\n",
        shown.stdout,
    ), shown.stdout


def test_validate_peers(folder: Path) -> None:
    assert "kB to each of 2 peers" in call("validate", write(folder).name, "strategy=dsgd", "schedule=gossip").stdout


def test_validate_of_a_sweep_ends_with_one_summary(folder: Path) -> None:
    """`again` asks what `plain` asks."""
    sweep = "{variants: {plain: {}, again: {strategy: fedavg}, large: {task: {model: {name: mlp, hidden: [4]}}}}, seeds: 0..1}"
    shown = call("validate", write(folder).name, f"sweep={sweep}").stdout
    lines = shown.split("small  6 runs of 2 seeds, all valid\n")[1].splitlines()
    assert lines[0] == "  nodes     8" and lines[1] == "  model     310 to 650 parameters"  # 64 x 4 + 4 + 4 x 10 + 10, and 64 x 10 + 10
    assert re.fullmatch(r"  a job     \d+ ms to [\d.]+ s simulated; [\d.]+ kB to [\d.]+ kB sent and heard at most", lines[2])
    assert lines[3:] == [f"  the same  again seed {seed} asks what plain seed {seed} asks" for seed in (0, 1)]
    assert "all valid" not in call("validate", write(folder).name).stdout


def test_overrides_hold_and_are_written_down(folder: Path) -> None:
    settings = ["train.lr=0.3", "strategy=fedprox", "strategy.pull=0.5", "world.network.up=2MB/s", "evaluate.metrics+=consensus"]
    assert call("run", write(folder).name, *settings, "name=other", "--quiet").output == ""
    [run] = find_runs(["other"])
    assert [run.parameters[key] for key in ("train.lr", "strategy.pull", "world.network.up")] == ["0.3", "0.5", "2 MB/s"]
    assert "nodes/consensus" in run.info["final"]
    written = (run.path / "scenario.yaml").read_text()
    assert "# command line" in written and "# small.yaml:" in written and "# default" in written


def test_sweep_over_lists(folder: Path) -> None:
    name = write(folder).name
    assert "seed" in refused("run", name, "seed=0..2")
    result = call("sweep", name, "seed=0..1", "train.lr=[0.1,0.3]")
    assert result.exit_code == 0
    runs = find_runs(["small"])
    assert sorted((run.parameters["train.lr"], run.info["seed"]) for run in runs) == [("0.1", 0), ("0.1", 1), ("0.3", 0), ("0.3", 1)]
    assert {run.path.name for run in runs} == {f"lr{lr}-seed{seed}" for lr in ("0.1", "0.3") for seed in (0, 1)}
    assert re.search(r"lr 0.1 +2 +\d+.\d \+- \d", result.stdout)
    assert len(find_runs(["small/lr0.1"])) == 2


def test_two_files_in_one_call(folder: Path) -> None:
    files = [write(folder, name=f"{name}.yaml").name for name in ("first", "second")]
    assert call("run", *files, "--quiet", "--runs", "results").exit_code == 0
    assert sorted(path.name for path in Path("results").iterdir()) == ["first", "second"]


def test_smoke(folder: Path) -> None:
    file = write(folder, TEXT + "smoke: {stop: {rounds: 1}, train: {steps: 1}}\n")
    assert call("run", file.name, "--smoke", "--quiet").exit_code == 0
    [run] = find_runs(["small"])
    assert run.info["reason"] == "1 round"
    assert run.info["final"]["work/steps"] == 4


@pytest.mark.pictures
def test_plot_again(folder: Path) -> None:
    call("run", write(folder).name, "--quiet")
    [run] = find_runs(["small"])
    before = {file.name for file in (run.path / "figures").iterdir()}
    for file in (run.path / "figures").iterdir():
        file.unlink()
    shown = call("plot", "small")
    assert shown.exit_code == 0 and {Path(line).name for line in shown.stdout.splitlines()} == before
    assert all(Path(line).read_bytes().startswith(b"\x89PNG") for line in shown.stdout.splitlines())


# Progress


def test_progress_on_a_terminal_is_one_line(folder: Path) -> None:
    [loaded] = load(write(folder))
    run = build(loaded, Tasks())
    console = Console(force_terminal=True, width=80, highlight=False, file=(folder / "screen").open("w"))
    with Progress(console) as progress:
        run.report = progress
        run.execute(folder / "run")
        line = describe(run)
    console.file.close()
    assert re.fullmatch(r"seed 0  round 4  00:14  \d+\.\d %  85.5 kB  [\d.]+k? steps/s", line)
    assert (folder / "screen").read_bytes().count(b"\n") == 1  # when it is over
