"""What a server may not make a worker do."""

import asyncio
import json
from pathlib import Path

import pytest

from fedsim.base.errors import FedsimError
from fedsim.deploy.join import Hands, Machine
from fedsim.deploy.training import prepare
from fedsim.transport.identity import WorkerIdentity
from fedsim.transport.messages_pb2 import Welcome
from fedsim.transport.objects import Store

SCENARIO = {"resolved": "task: {data: digits}\nstrategy: fedavg\n", "hash": "", "labels": []}


@pytest.mark.parametrize("name", ["../elsewhere.py", "/etc/passwd", "a/../../b.py"])
def test_own_code_lies_within_its_folder(name: str, tmp_path: Path) -> None:
    with pytest.raises(FedsimError, match="outside of"):
        prepare(tmp_path / "run", SCENARIO | {"own": [name]}, tmp_path, None, None, [0])
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("name", ["../run", "a/b", "", ".hidden"])
def test_a_runs_folder_lies_within_the_workers(name: str, tmp_path: Path) -> None:
    async def welcomed() -> None:
        hands = Hands(Machine("", "0", tmp_path, tmp_path), Store(tmp_path / "objects"), WorkerIdentity(insecure=True), print)
        await hands.welcome(Welcome(run=name, scenario=json.dumps(SCENARIO).encode(), nodes=[0]))

    with pytest.raises(FedsimError, match="no folder may have"):
        asyncio.run(welcomed())
