"""`fedsim report`: one HTML file that needs no network, made of runs."""

import html
import json
import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from importlib.resources import files
from pathlib import Path
from typing import Any

from fedsim import __version__
from fedsim.base.errors import FedsimError
from fedsim.base.files import whole, writing
from fedsim.report.figures.plots import figures_of
from fedsim.report.page.contents import contents
from fedsim.report.page.digest import Digest, Left, digest, most_evaluations, sort_out
from fedsim.report.style import variants_of
from fedsim.run.folders import RunFolder
from fedsim.run.links import keep_inside

OURS = '<meta name="generator" content="fedsim'  # near the beginning of each page


def report(runs: Sequence[RunFolder], file: Path, say: Callable[[str], None] = lambda _: None) -> list[Left]:
    """Writes the page of all these runs, whole or not at all; gives those that are listed there and not counted.

    `runs` may be unfinished, damaged, or never begun (see `find_planned`). `say` is told what is being read. The same runs make the same
    bytes. Raises FedsimError where no run can be read or the file must not be replaced, RunError where it can't be written.
    """
    check_target(file)
    sorted_ = sort_out(runs)
    if not sorted_.runs and sorted_.left and all(one.status == "damaged" for one in sorted_.left):
        raise FedsimError(sorted_.left[0].why)
    most, found = most_evaluations(sorted_.runs), dict[str, Digest]()
    for place, run in enumerate(sorted_.runs):
        say(f"reading run {place + 1} of {len(sorted_.runs)}")
        try:
            found[str(run.path)] = digest(run, most)
        except FedsimError as error:
            sorted_.left.append(Left(run.label, "damaged", str(error)))
    good = [run for run in sorted_.runs if str(run.path) in found]
    say("drawing")
    content = {"title": _title(runs, good), "version": __version__, "left": [vars(one) for one in sorted_.left]}
    content["tasks"] = [_task(name, own, found) for name, own in tasks_of(good).items()]
    with whole(file) as draft:
        draft.write_text(_page(content), encoding="utf-8", errors="replace")
    return sorted_.left


def page_of(runs: Sequence[RunFolder]) -> Path:
    """Where the page belongs: among the pictures of these runs, whose folder is made. Raises FedsimError where a link leads elsewhere."""
    begun = [run for run in runs if (run.path / "run.json").exists()]
    folder = figures_of(begun or runs)
    for place in {folder, *(run.path for run in begun)}:
        keep_inside(place)
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
    return folder / "report.html"


def check_target(file: Path) -> None:
    """Raises FedsimError where a page can't, or must not, be written."""
    try:
        _check(file)
    except OSError as error:
        raise FedsimError(f"{file} can't be written: {error.strerror}") from None


def _check(file: Path) -> None:
    if file.suffix.lower() not in (".html", ".htm") and not file.is_dir():
        raise FedsimError(f"{file}: a name that ends in .html is due")
    if not file.parent.is_dir():
        raise FedsimError(f"{file}: there is no folder {file.parent}; make it first")
    if file.is_dir():
        raise FedsimError(f"{file} is a folder; a file is due, such as {file / 'report.html'}")
    if file.exists() and not file.is_file():
        raise FedsimError(f"{file} is no plain file")
    if file.exists() and file.stat().st_size:
        with file.open("rb") as old:
            if OURS.encode() not in old.read(1000):
                raise FedsimError(f"{file} is there already and is no report of fedsim, so it is left as it is: take another name")


def tasks_of(runs: Sequence[RunFolder]) -> dict[str, list[RunFolder]]:
    """Runs by what they learn: results of other data, or of another loss, say nothing about each other."""
    groups: dict[str, list[RunFolder]] = {}
    for run in runs:
        groups.setdefault(_task_of(run), []).append(run)
    return groups


def _task_of(run: RunFolder) -> str:
    """`digits`, with what else is set of the data, and of the loss."""
    known = run.parameters
    data = known.get("task.data.name") or known.get("task.data") or str(run.info.get("name"))
    more = [f"{key.removeprefix('task.')} {value}" for key, value in known.items() if key.startswith(("task.data.", "task.loss"))]
    return ", ".join([data, *(text for text in more if not text.startswith("data.name ") and not text.endswith(" null"))])


def _task(name: str, runs: Sequence[RunFolder], digests: dict[str, Digest]) -> dict[str, Any]:
    return contents(name, [replace(variant, runs=variant.finished) for variant in variants_of(runs)], digests)


def _title(runs: Sequence[RunFolder], good: Sequence[RunFolder]) -> str:
    names = list(dict.fromkeys(str(run.info.get("name")) for run in good)) or [run.path.parent.name for run in runs[:1]]
    return names[0] if len(names) == 1 else f"{names[0]} and {len(names) - 1} more" if len(names) > 4 else ", ".join(names)


def _page(content: dict[str, Any]) -> str:
    """The page with its style, code and data; a `<` in data is written so that no name can end the data."""
    web = files("fedsim.report.page") / "web"
    data = json.dumps(content, separators=(",", ":"), allow_nan=False).replace("<", "\\u003c")
    code = "\n".join((web / name).read_text("utf-8") for name in ("chart.js", "pictures.js", "page.js"))
    parts = {"title": html.escape(content["title"]), "version": __version__, "style": (web / "style.css").read_text("utf-8")}
    page = (web / "page.html").read_text("utf-8")
    parts |= {"code": code, "data": data}
    return re.sub(r"\{\{(\w+)\}\}", lambda place: parts[place[1]], page)
