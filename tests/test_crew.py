"""A worker's processes of training, as its network hears and ends them."""

import asyncio
from pathlib import Path
from threading import Event
from typing import Any

import pytest

from fedsim.deploy import crew


class Pipe:
    """It says nothing, and ends when its process does; who closes it under a reader is found out."""

    def __init__(self) -> None:
        self.reading, self.ended, self.closed = Event(), Event(), False

    def recv(self) -> Any:
        self.reading.set()
        self.ended.wait(10)
        assert not self.closed, "closed while it was read"
        raise EOFError

    def close(self) -> None:
        self.closed = True


class Child:
    exitcode = 0

    def kill(self) -> None: ...

    def join(self, seconds: float) -> None: ...


def test_a_pipe_is_closed_by_who_reads_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    pipe = Pipe()
    monkeypatch.setattr(crew, "start", lambda setup: (Child(), pipe))

    async def closed() -> crew.Died:
        died = asyncio.get_running_loop().create_future()
        them = crew.Crew({"folder": tmp_path}, [None])
        them.listen(lambda *_: None, died.set_result)
        await asyncio.to_thread(pipe.reading.wait, 10)
        them.close()
        assert not pipe.closed
        pipe.ended.set()
        found: crew.Died = await asyncio.wait_for(died, 10)
        return found

    assert isinstance(asyncio.run(closed()), crew.Died) and pipe.closed
    unheard = Pipe()
    monkeypatch.setattr(crew, "start", lambda setup: (Child(), unheard))
    crew.Crew({"folder": tmp_path}, [None]).close()
    assert unheard.closed
