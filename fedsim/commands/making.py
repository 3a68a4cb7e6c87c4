"""The command that makes a start: new."""

from pathlib import Path
from typing import Annotated

import typer

from fedsim.commands.words import app, fail

TEMPLATES = Path(__file__).parent / "templates"  # `my_KIND.py`, its test and its scenario, which run as they are
KINDS = ("scenario", "strategy", "codec", "topology", "model", "data")
Kind = Annotated[str, typer.Argument(metavar="KIND", hidden=True, autocompletion=lambda: KINDS)]
Name = Annotated[str, typer.Argument(metavar="NAME", hidden=True)]


@app.command(epilog=f"KIND: {', '.join(KINDS)}. NAME: lower case, words joined by _. Files that exist are kept.")
def new(kind: Kind, name: Name) -> None:
    """Make a scenario, or a part of your own, with its test."""
    from fedsim.scenario.leaves import nearest

    if kind not in KINDS:
        fail(f"new: `{kind}` is none of {', '.join(KINDS)}{nearest(kind, KINDS)}", 2)
    better = sensible(kind, name)
    if better != name:
        taken = _plain(name) == name
        why = "means something else there" if taken else "can't name a module: lower case, digits and _ are due"
        fail(f"new {kind}: `{name}` {why}; did you mean `{better}`?", 2)
    made = {Path(file): text for file, text in texts(kind, name).items()}
    if there := [str(file) for file in made if file.exists() or file.is_symlink()]:
        fail(f"new {kind}: {' and '.join(there)} {'is' if len(there) == 1 else 'are'} there already; nothing was written", 2)
    for file, text in made.items():
        try:
            with file.open("x") as out:
                out.write(text)
        except OSError as error:
            fail(f"new {kind}: {file} can't be written: {error.strerror}", 2)
    width = max(len(str(file)) for file in made)
    for file in made:
        print(f"{file!s:{width}}  {_about(file, kind)}")
    print(f"next: fedsim run {name}.yaml --smoke; python -m pytest test_{name}.py")


def texts(kind: str, name: str) -> dict[str, str]:
    """The files of a kind by name, with the name in them."""
    files = [TEMPLATES / f"{file}my_{kind}{end}" for file, end in (("", ".py"), ("", ".yaml"), ("test_", ".py"))]
    words = {f"my_{kind}": name, f"My{kind.title()}": _camel(name)}
    found = {}
    for file in files:
        if file.exists():  # a scenario has no module
            text, title = file.read_text(), file.name
            for old, new in words.items():
                text, title = text.replace(old, new), title.replace(old, new)
            found[title] = text
    return found


def sensible(kind: str, name: str) -> str:
    """The name itself where it can be that of a module beside a scenario, else one like it that can."""
    found = _plain(name)
    return found if found and not (found[0].isdigit() or _taken(kind, found)) else f"my_{found or kind}"


def _plain(name: str) -> str:
    """`Fed-Größe.py` -> `fed_grosse`"""
    import re
    import unicodedata

    from fedsim.settings.part import spell

    ascii = unicodedata.normalize("NFKD", name.replace("ß", "ss")).encode("ascii", "ignore").decode()
    return re.sub(r"[\W_]+", "_", spell(re.sub(r"\.(py|ya?ml)$", "", ascii))).strip("_")


def _taken(kind: str, name: str) -> bool:
    """Whether an import of it would find something else (a scenario's folder is the last place looked at), or its class hide another."""
    import keyword
    import re
    from importlib.util import find_spec

    if kind == "scenario":  # no module
        return False
    spec, here = None if keyword.iskeyword(name) else find_spec(name), Path(f"{name}.py")
    elsewhere = spec is not None and not (here.exists() and spec.origin and here.samefile(spec.origin))
    words = re.findall(r"\w+", "".join(file.read_text() for file in TEMPLATES.glob(f"*my_{kind}.py")))
    return keyword.iskeyword(name) or elsewhere or (_camel(name) in words and name != f"my_{kind}")


def _camel(name: str) -> str:
    return "".join(word[:1].upper() + word[1:] for word in name.split("_"))


def _about(file: Path, kind: str) -> str:
    if file.name.startswith("test_"):
        return "its test, which passes as it is"
    return f"the {kind}" if (file.suffix == ".yaml") == (kind == "scenario") else "a scenario that uses it"
