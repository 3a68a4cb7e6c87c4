"""The pages: every python, console and yaml block in them is executed, what they name is there, and the reference has all there is.

A comment before a block says more of it: `<!-- file: NAME -->` writes it down for the blocks below, `<!-- same: FILE -->` is a copy of a
shipped file, `<!-- slow -->` leaves it to `make test-slow`. Blocks of a page share a folder, with `scenarios/` in it, and Python names.
"""

import importlib.util
import re
import shlex
from pathlib import Path
from typing import Any

import click
import pytest
from launch import call
from sybil import Example, Sybil
from sybil.parsers.markdown import CodeBlockParser, PythonCodeBlockParser
from typer.main import get_command

from fedsim.commands.cli import app
from fedsim.run.building import Tasks, build
from fedsim.scenario import keys, load, slots
from fedsim.scenario.parts import candidates

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
TEXTS = [*PAGES, ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md"]
VARY = [  # what differs from run to run and from machine to machine
    (r"\b\d{8}-\d{6}-", "TIME-"),
    (r"\b[0-9a-f]{4}( [0-9a-f]{4}){3}\b|(?<=model )[0-9a-f]{4}\b|(?=[a-f]*\d)\b[0-9a-f]{6}\b", "HASH"),
    (r"(?<=\bin )[\d.]+ (ms|s|min)( \d+)?\b", "SECONDS"),
    (r"(?<=SECONDS)\s+(?=target)", "   "),
    (r"[\d.,]+k? steps/s", "SPEED"),
    (r" {3,}", "   "),  # columns move with them
]
TASKS = Tasks()


def said_of(example: Example) -> str:
    """The comment before a block."""
    found = re.search(r"<!-- ([^\n]*) -->\n$", example.document.text[: example.start])
    return found[1] if found else ""


def plain(text: str) -> str:
    for pattern, word in VARY:
        text = re.sub(pattern, word, text)
    return "\n".join(line.rstrip() for line in text.strip("\n").splitlines())


def kept(example: Example) -> bool:
    """Whether it is a file: for the blocks below, or a copy of a shipped one."""
    what, _, name = said_of(example).partition(": ")
    if what == "file":
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).write_text(example.parsed)
    if what == "same":
        shipped = re.sub(r"\A(#[^\n]*\n)+", "", (ROOT / name).read_text())
        assert example.parsed.rstrip("\n") == shipped.rstrip("\n"), f"this is not {name}"
    return what in ("file", "same")


def run_yaml(example: Example) -> None:
    """A scenario loads and its first run is run at smoke size; a part of one is loaded on top of minimal.yaml."""
    if kept(example):
        return
    whole = re.search(r"^(task|extends):", example.parsed, re.M)
    Path("block.yaml").write_text(example.parsed if whole else f"extends: scenarios/minimal.yaml\n{example.parsed}")
    runs = load("block.yaml", ["track=none"], smoke=True)
    if whole:
        assert build(runs[0], TASKS).execute(Path(f"block {example.line}"))["status"] == "finished"


def run_console(example: Example) -> str | None:
    """What `$ fedsim ...` says is what stands below; a line `...` stands for any lines."""
    typed = re.split(r"^\$ ", example.parsed, flags=re.M)
    if re.match(r"\w+\$ ", typed[0]):
        return None  # of several machines: tests/test_three_machines.py types it there
    assert not typed[0] and len(typed) > 1, "a console block begins with `$ `"
    for command in typed[1:]:
        line, _, expected = command.partition("\n")
        program, *words = shlex.split(line, comments=True)
        assert program == "fedsim", f"{program}: only fedsim is run here"
        result = call(*words)
        lines = [".*" if text == "..." else re.escape(text) for text in plain(expected).splitlines()]
        if not lines:
            assert result.exit_code == 0, result.output
        elif not re.fullmatch("\n".join(lines).replace("\n.*", "(?:\n.*)*?"), plain(result.output), re.DOTALL):
            return f"fedsim says\n{result.output}\nnot\n{expected}"
    return None


class Python(PythonCodeBlockParser):
    def evaluate(self, example: Example) -> Any:
        kept(example)
        return super().evaluate(example)


BLOCKS = Sybil(parsers=[CodeBlockParser("yaml", run_yaml), CodeBlockParser("console", run_console), Python()])


def examples(page: Path) -> list[Example]:
    return list(BLOCKS.parse(page).examples())


def is_slow(example: Example) -> bool:
    return said_of(example) == "slow"


WITH_BLOCKS = [page for page in PAGES if examples(page)]
FAST = [pytest.param(page, False, id=page.stem) for page in WITH_BLOCKS]
SLOW = [
    pytest.param(page, True, id=f"{page.stem}, whole", marks=[pytest.mark.slow, pytest.mark.pictures])
    for page in WITH_BLOCKS
    if any(map(is_slow, examples(page)))
]


@pytest.mark.parametrize(("page", "whole"), FAST + SLOW)
def test_blocks(page: Path, whole: bool, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")  # wherever the tests run
    (folder / "scenarios").symlink_to(ROOT / "scenarios")
    for example in examples(page):
        if whole or not is_slow(example):
            example.evaluate()


def test_commands_that_pages_name_are_there() -> None:
    group = get_command(app)
    assert isinstance(group, click.Group)
    for page in TEXTS:
        text = page.read_text()
        named = set(re.findall(r"`fedsim ([a-z]+)", text))
        assert named <= {*group.commands}, page
        for block in re.findall(r"^```bash\n(.*?)^```", text, re.M | re.DOTALL):
            for line in re.findall(r"^fedsim .*$", block.replace("\\\n", ""), re.M):
                _, name, *words = shlex.split(line, comments=True)
                group.commands[name].make_context(name, words)  # raises UsageError


def anchors(page: Path) -> set[str]:
    """Of its headings, as GitHub and the built pages make them."""
    text = re.sub(r"^```.*?^```", "", page.read_text(), flags=re.M | re.DOTALL)
    heads = re.findall(r"^#+ (.*)$", text, re.M)
    return {re.sub(r"[^\w\- ]", "", head.lower()).replace(" ", "-") for head in heads}


@pytest.mark.parametrize("page", TEXTS, ids=lambda page: page.stem)
def test_links_lead_somewhere(page: Path) -> None:
    for link in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
        if "://" in link:
            continue
        name, _, anchor = link.partition("#")
        file = (page.parent / name).resolve() if name else page
        assert file.exists(), f"{page.name}: {link}"
        assert not anchor or anchor in anchors(file), f"{page.name}: {link}"


def test_pages_name_every_scenario() -> None:
    library, claims = ((ROOT / f"docs/{name}.md").read_text() for name in ("scenarios", "methods"))
    shipped = {file.relative_to(ROOT).as_posix() for file in (ROOT / "scenarios").rglob("*.yaml")}
    assert {name for name in shipped if f"(../{name})" not in library + claims} <= {"scenarios/flower_app/scenario.yaml"}


def test_the_reference_has_all_there_is(tmp_path: Path) -> None:
    spec = importlib.util.spec_from_file_location("generate", ROOT / "docs/generate.py")
    assert spec and spec.loader
    generate = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(generate)
    generate.stage(tmp_path / "pages")
    text = (tmp_path / "pages/reference.md").read_text()
    assert [key.name for key in keys() if f"\n| `{key.name}` | " not in text] == []
    parts = {f"{slot}-{name}" for slot, base in slots().items() for name in candidates(base)}
    assert set(re.findall(r"\{: #(\w+-\w+) \}", text)) == parts
    assert "## validate\n```text\nUsage: fedsim validate [OPTIONS] SCENARIO..." in (tmp_path / "pages/commands.md").read_text()
    assert {file.name for file in PAGES if file.name != "README.md"} <= {file.name for file in (tmp_path / "pages").glob("*.md")}


@pytest.mark.parametrize(
    ("block", "why"),
    [
        ("```console\n$ fedsim list fedprox\nfedprox (strategy)  Li et al. 2021\n...\n```\n", "fedsim says"),
        ("```console\n$ fedsim list fedprx\n```\n", "did you mean `fedprox`"),
        ("```console\n$ rm -r /\n```\n", "only fedsim is run here"),
        ("```yaml\nengine: {proceses: 2}\n```\n", "block.yaml:2:10: unknown key `engine.proceses`"),
        ("<!-- same: scenarios/minimal.yaml -->\n```yaml\nstrategy: fedavg\n```\n", "this is not scenarios/minimal.yaml"),
        ("```python\nfrom fedsim import Strategie\n```\n", "Strategie"),
    ],
)
def test_a_wrong_block_is_found(block: str, why: str, folder: Path) -> None:
    (folder / "scenarios").symlink_to(ROOT / "scenarios")
    (folder / "page.md").write_text(f"# Page\n{block}")
    [example] = examples(folder / "page.md")
    with pytest.raises(Exception, match=why):
        example.evaluate()
