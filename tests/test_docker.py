"""docker/: what can be said of the files without building anything; `make docker-test` builds and runs them."""

import re
from pathlib import Path
from typing import Any

import yaml

from fedsim.run.building import Tasks
from fedsim.scenario import load
from fedsim.transport.authority import parse_workers
from fedsim.transport.nodes import Nodes, parse

ROOT = Path(__file__).resolve().parents[1]
FOLDER = ROOT / "docker"


def services() -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = yaml.safe_load((FOLDER / "compose.yaml").read_text())["services"]
    return found


def test_what_is_copied_is_there_and_not_ignored() -> None:
    copied = {name for line in re.findall(r"^COPY (.*) \S+$", (FOLDER / "Dockerfile").read_text(), re.MULTILINE) for name in line.split()}
    kept = {line[1:] for line in (FOLDER / "Dockerfile.dockerignore").read_text().splitlines() if line.startswith("!")}
    assert copied == kept and all((ROOT / name).exists() for name in copied)


def test_workers_have_the_certificates_and_the_nodes_of_the_servers_scenario() -> None:
    every = services()
    command = every["certs"]["command"]
    certified = {one.name: one.nodes for one in parse_workers(command[command.index("--workers") + 1])}
    hosted = Nodes()
    for name in "abcd":
        command = every[name]["command"]
        nodes = parse(command[command.index("--nodes") + 1])
        assert nodes and f"/certs/{name}.pem" in command and str(certified[name]) == str(nodes)
        hosted = Nodes.of((*hosted.ranges, *nodes.ranges))
    [loaded] = load(ROOT / every["server"]["command"][2].lstrip("/"), every["server"]["command"][3:4])
    assert str(hosted) == f"0..{Tasks().get(loaded).nodes - 1}"


def test_services_use_the_volumes_that_there_are() -> None:
    content = yaml.safe_load((FOLDER / "compose.yaml").read_text())
    used = {volume.split(":")[0] for one in content["services"].values() for volume in one.get("volumes", ())}
    assert {name for name in used if not name.startswith(".")} == content["volumes"].keys()
