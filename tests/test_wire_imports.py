"""No pickle and no code over the wire: what reads what a stranger sent can't reach anything that would run it."""

import ast
import subprocess
import sys
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
BAD = {"pickle", "cPickle", "dill", "cloudpickle", "marshal", "shelve", "joblib", "runpy", "code", "importlib"}
LOCAL = ("traces.py",)  # reads a file of the user's own, whose pickle may hold numbers and nothing else
CALLS = {"eval", "exec", "compile", "__import__"}
READERS = [*(ROOT / "fedsim/transport").glob("*.py"), *(ROOT / f"fedsim/deploy/{name}.py" for name in ("packing", "replies", "orders"))]


@cache
def looked(file: Path) -> tuple[frozenset[str], frozenset[str]]:
    """What a file imports anywhere, and what it calls that runs what it is given: `eval`, `torch.load` ..."""
    imports, calls = set[str](), set[str]()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            imports |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            imports |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
        elif isinstance(node, ast.Call):
            calls.add(ast.unparse(node.func))
    return frozenset(imports), frozenset(calls)


def reached(files: list[Path]) -> set[Path]:
    """All files of ours that these import, directly or not."""
    seen, new = set[Path](), list(files)
    while new:
        file = new.pop()
        if file in seen:
            continue
        seen.add(file)
        for name in looked(file)[0]:
            place = ROOT / name.replace(".", "/")
            new += [one for one in (place.with_suffix(".py"), place / "__init__.py") if name.startswith("fedsim.") and one.is_file()]
    return seen


def risks(file: Path) -> set[str]:
    imports, calls = looked(file)
    return {name for name in imports if name.split(".")[0] in BAD} | (calls & {*CALLS, "torch.load", "yaml.load"})


def test_nothing_that_reads_the_wire_can_run_what_it_reads() -> None:
    files = reached([file for file in READERS if not file.stem.endswith("_pb2_grpc")])
    assert {ROOT / "fedsim/base/files.py", ROOT / "fedsim/codecs/wire.py", ROOT / "fedsim/transport/hub.py"} <= files
    found = {str(file.relative_to(ROOT)): bad for file in files if file.name not in LOCAL and (bad := risks(file))}
    assert found == {}


def test_it_would_be_found() -> None:
    assert "pickle" in looked(ROOT / "fedsim/engines/processes.py")[0]
    assert ROOT / "fedsim/engines/processes.py" in reached([ROOT / "fedsim/engines/local.py"])


def test_the_network_of_a_worker_needs_no_torch() -> None:
    """It starts at once, and training alone pays for what it computes with."""
    code = "import sys, fedsim.deploy.join; print([name for name in ('torch', 'numpy', 'flwr') if name in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "[]\n"
