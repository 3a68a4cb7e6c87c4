"""Stages the pages in build/docs for `zensical build`: docs/, README as the home page, and a reference made of the schema itself.

Run from the folder of the project: `python docs/generate.py`. What pages link to outside docs/ comes along.
"""

import re
import shutil
import sys
from collections.abc import Iterator
from itertools import chain
from pathlib import Path

import click
from typer.main import get_command

from fedsim.commands.cli import app
from fedsim.scenario.catalog_cache import overview
from fedsim.scenario.infos import Overview, PartInfo, SettingInfo

ROOT = Path(__file__).resolve().parent.parent
BESIDE = ("CHANGELOG.md", "CONTRIBUTING.md", "LICENSE")
STYLE = "td:first-child code { white-space: nowrap }\n"
LINK = re.compile(r"(?<=\]\()([^)#:\s]+)")  # of `[text](file#anchor)`; not an address


def cell(text: str) -> str:
    """As Markdown takes it within a table."""
    return text.replace("|", "\\|").replace("<", "&lt;").replace("*", "\\*").replace("_", "\\_").replace("\n", " ")


def code(text: str) -> str:
    return f"`{text}`".replace("|", "\\|") if text else ""


def settings(rows: tuple[SettingInfo, ...]) -> Iterator[str]:
    """The table of some settings."""
    yield "| setting | type | default | what it means |"
    yield "|---|---|---|---|"
    for one in rows:
        kind = cell(one.type + (f", {one.limits}" if one.limits else ""))
        yield f"| {code(one.name)} | {kind} | {'needed' if one.default is None else code(one.default)} | {cell(one.help)} |"


def part(one: PartInfo) -> Iterator[str]:
    about = f"{cell(one.help)}{f' *{cell(one.source)}.*' if one.source else ''}"
    yield from (f"### {one.name} {{: #{one.slot}-{one.name} }}", about, "")
    if one.settings:
        yield from settings(one.settings)
        yield ""


def reference(known: Overview) -> str:
    """Every key and every part, as a page."""
    lines = ["# Keys and parts", "Made of the schema by `make docs`; `fedsim list` shows the same in a terminal.", "", "## Keys"]
    lines += [*settings(known.keys), ""]
    for slot, parts in known.slots.items():
        lines += [f"## {slot} {{: #{slot} }}", ", ".join(f"[{one.name}](#{slot}-{one.name})" for one in parts), ""]
        lines += chain.from_iterable(map(part, parts))
    return "\n".join(lines) + "\n"


def commands() -> str:
    """What `--help` says of each command, as a page."""
    group = get_command(app)
    assert isinstance(group, click.Group)
    lines = ["# Commands", "What `fedsim COMMAND --help` prints.", ""]
    for name, command in group.commands.items():
        if not command.hidden:
            text = command.get_help(click.Context(command, info_name=f"fedsim {name}", terminal_width=100))
            lines += [f"## {name}", "```text", text, "```", ""]
    return "\n".join(lines)


def stage(target: Path) -> None:
    """Writes all pages into `target`, anew, with what they link to; raises FileNotFoundError for a link to nothing."""
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir(parents=True)
    pages = {ROOT / "README.md": "index.md"} | {file: file.name for file in (ROOT / "docs").glob("*.md")}
    pages |= {ROOT / name: name for name in BESIDE if name.endswith(".md")}
    for file, name in pages.items():
        (target / name).write_text(LINK.sub(lambda link, file=file: staged(file, link[1], pages, target), file.read_text()))
    (target / "pages.css").write_text(STYLE)
    (target / "reference.md").write_text(reference(overview()))
    (target / "commands.md").write_text(commands())


def staged(page: Path, link: str, pages: dict[Path, str], target: Path) -> str:
    """Where what a page links to lies in the site; a file that is no page is copied."""
    file = (page.parent / link).resolve()
    if file in pages or not file.exists():  # zensical names a dead link, with its place
        return pages.get(file, link)
    place = file.relative_to(ROOT)
    if file.is_file():
        (target / place).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file, target / place)
    return place.as_posix()


if __name__ == "__main__":
    stage(Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT / "build/docs")
