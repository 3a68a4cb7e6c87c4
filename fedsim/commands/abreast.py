"""Runs of a sweep side by side: each in a forked process, which shares what this one has loaded; what they say comes to one screen."""

import ctypes
import multiprocessing
import os
import signal
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from multiprocessing.connection import Connection, wait
from time import monotonic
from typing import Any

from fedsim.base.crashes import ending, last_words
from fedsim.base.devices import cores, forks, listed
from fedsim.base.errors import FedsimError, placed
from fedsim.base.memory import free_memory
from fedsim.engines.local import LocalEngine
from fedsim.report.screen.progress import Progress
from fedsim.run.guard import PATIENCE, ByHand
from fedsim.scenario.loader import Loaded

Work = Callable[[int, ByHand, Progress], dict[str, Any]]  # a run's number; its status and reason
ASK = signal.SIGUSR1  # a signal that reaches no process but the one that is meant
NEEDED = 1 << 30  # bytes that a run may take for models and batches where its scenario says nothing


def side_by_side(runs: Sequence[Loaded], asked: int | None) -> int:
    """How many runs are worked on at once: as asked, or as many as cores and free memory allow.

    One where runs use a GPU, several threads or machines, or end by the host's time, which others beside them would take. Raises
    FedsimError where more are asked for than can be.
    """
    if asked is not None and asked < 1:
        raise FedsimError(f"--jobs {asked}: 1 or more is due")
    engines = [run.scenario.engine for run in runs]
    why = next(filter(None, map(_alone, engines)), "")
    if why and asked and asked > 1:
        raise FedsimError(f"--jobs {asked}: {why}; side by side each run has a core of its own")
    if asked or why or any(run.scenario.stop.wall is not None for run in runs):
        return 1 if why else min(asked or 1, len(runs))
    local = [engine for engine in engines if isinstance(engine, LocalEngine)]  # which all of them are
    memory = max(NEEDED if engine.memory == "auto" else engine.memory for engine in local)
    each = max(1 if engine.processes == "auto" else engine.processes for engine in local)
    return max(1, min(len(runs), cores() // each, free_memory() // memory))


def _alone(engine: Any) -> str:
    """Why a run with this engine has the machine for itself; "" where it need not."""
    if not isinstance(engine, LocalEngine):
        return f"`engine: {engine.name}` shares out each run already"
    with placed("engine.device"):
        devices = listed(engine.device)
    if devices[0].type != "cpu":
        return "a GPU is used by one process"
    if not forks():
        return "processes are not forked where torch has GPUs"
    if len(devices) > 1:
        return f"`engine.device: {engine.device}`"
    return f"`engine.threads: {engine.threads}`" if engine.threads not in ("auto", 1) else ""


class _Told(Progress):
    """What a run beside others says of itself goes through the pipe to the screen of all."""

    def __init__(self, pipe: Connection, screen: Progress) -> None:
        super().__init__(quiet=True)
        self.pipe, self.quiet, self.live = pipe, screen.quiet, screen.live

    def __enter__(self) -> "_Told":
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def paint(self, text: str) -> bool:
        self._send("paint", text)
        return True

    def say(self, *lines: str) -> None:
        self._send("say", lines)

    def introduce(self, title: str, found: Sequence[str], warnings: Sequence[str]) -> None:
        self._send("introduce", (title, found, warnings))

    def _send(self, what: str, content: Any) -> None:
        with suppress(OSError):  # the other end was killed
            self.pipe.send((what, content))


class Abreast:
    """Forked processes that work on runs, whoever is free on the next; `asked` to stop, each does at its next round.

    A process that dies takes its run with it, not the others.
    """

    def __init__(self, jobs: int, work: Work, folder_of: Callable[[int], Any], progress: Progress) -> None:
        self.jobs, self.work, self.folder_of, self.progress = jobs, work, folder_of, progress
        self.children: dict[Connection, Any] = {}
        self.lines: dict[Connection, str] = {}
        self.done, self.runs = 0, 0
        self._asked = False

    @property
    def asked(self) -> bool:
        """Whether all are to stop; set, each is told."""
        return self._asked

    @asked.setter
    def asked(self, value: bool) -> None:
        self._asked = value
        self._tell()

    def _tell(self) -> None:
        for child in self.children.values():
            if child.is_alive():
                os.kill(child.pid, ASK)

    def results(self, runs: int, hands: ByHand) -> Iterator[tuple[int, dict[str, Any]]]:
        """(number, status and reason) of each run as it ends; none begins after they were asked to stop."""
        waiting, busy, self.runs = iter(range(runs)), dict[Connection, int](), runs
        hands.guard = self
        until = float("inf")
        try:
            for _ in range(min(self.jobs, runs)):
                self._next(self._child(), waiting, busy)
            while busy:
                try:
                    ready = wait(list(busy), None if until == float("inf") else max(0.0, until - monotonic()))
                except KeyboardInterrupt:  # a second Ctrl-C, or the first is not obeyed in time
                    if self._asked and until < float("inf"):
                        raise
                    self.asked, until = True, monotonic() + 3 * PATIENCE
                    continue
                if not ready:
                    raise KeyboardInterrupt
                for pipe in ready:
                    assert isinstance(pipe, Connection)
                    if found := self._heard(pipe, busy[pipe]):
                        self.lines.pop(pipe, None)
                        self.done += 1
                        yield busy.pop(pipe), found
                        if not self._asked:
                            self._next(pipe if pipe in self.children else self._child(), waiting, busy)
        finally:
            hands.guard = None
            if busy:
                self._tell()
            self._close()

    def _heard(self, pipe: Connection, number: int) -> dict[str, Any] | None:
        """One message, shown; what became of the run where it has ended."""
        try:
            what, content = pipe.recv()
        except (EOFError, OSError):
            child = self.children.pop(pipe)
            child.join(PATIENCE)
            words = last_words(self.folder_of(number) / "log.txt")
            return {"status": "failed", "reason": f"its process {ending(child.exitcode)}{f' ({words})' if words else ''}"}
        if what == "paint":
            self.lines[pipe] = content
            self.progress.paint("\n".join([*self.lines.values(), f"{self.done} of {self.runs} runs done"]))
        elif what == "ended":
            return dict(content)
        else:
            getattr(self.progress, what)(*content)
        return None

    def _next(self, pipe: Connection, waiting: Iterator[int], busy: dict[Connection, int]) -> None:
        number = next(waiting, None)
        if number is not None:
            with suppress(OSError):  # one that has died says so when it is listened to
                pipe.send(number)
            busy[pipe] = number

    def _child(self) -> Connection:
        context = multiprocessing.get_context("fork")
        ours, theirs = context.Pipe()
        child = context.Process(target=self._serve, args=(theirs, [*self.children, ours], os.getpid()))
        child.start()
        theirs.close()
        self.children[ours] = child
        return ours

    def _serve(self, pipe: Connection, others: Sequence[Connection], parent: int) -> None:
        """The life of a process: Ctrl-C and SIGTERM are its parent's affair, which asks it to stop, and it ends with the pipe."""
        for theirs in (signal.SIGINT, signal.SIGTERM):
            signal.signal(theirs, signal.SIG_IGN)
        with suppress(KeyboardInterrupt), ByHand(ASK) as hands:
            libc = ctypes.CDLL(None)
            if hasattr(libc, "prctl"):
                libc.prctl(1, ASK)  # PR_SET_PDEATHSIG: the parent may be killed
            if os.getppid() != parent:
                return
            for one in others:
                one.close()
            told = _Told(pipe, self.progress)
            while True:
                try:
                    number = pipe.recv()
                except EOFError:
                    return
                info = self.work(number, hands, told)
                with suppress(OSError):
                    pipe.send(("ended", {"status": info["status"], "reason": info["reason"]}))

    def _close(self) -> None:
        for pipe in self.children:
            pipe.close()
        for child in self.children.values():
            child.join(PATIENCE)
            if child.is_alive():
                child.kill()
                child.join()
