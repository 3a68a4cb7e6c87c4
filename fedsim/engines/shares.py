"""Shares: who of some actors has which nodes, what it was given to do, and how all that is made anew when one dies."""

# n: nodes, m: jobs of a block, k: an actor, which is its share's number too

import pickle
from collections import deque
from collections.abc import Callable, Iterator
from time import monotonic
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from fedsim.base.clock import Ints
from fedsim.base.errors import HostError, SettingError
from fedsim.base.rows import Rows
from fedsim.engines.actor import ABOUT, Copies, Setup
from fedsim.engines.calls import Call, Given, Share, Sync, keepers, still_open
from fedsim.engines.parcels import array, bundled, tensors
from fedsim.engines.troupe import PATIENCE, LostError, Troupe

AHEAD = 2  # blocks that an actor has at once, so that it never waits for the driver
LONG = 64  # calls of an actor that would be repeated if it died, at most
PIECE = 32 << 20  # bytes of memories on their way at once
DEATHS = 4  # in a row, without a block done between


class Shares:
    """Work for the actors of a troupe, and what their nodes remember, if methods have memories at all."""

    def __init__(self, troupe: Troupe, setup: Setup, home: Ints, each: int, about: dict[str, Any], memory: int) -> None:
        """`each`: bytes that a node remembers; `about`: how all actors must compute; `memory`: bytes that the driver may hold."""
        self.troupe, self.home, self.each, self.about, self.budget = troupe, home, each, about, memory
        self.remembers, self.count = each > 0, troupe.count
        self.shares = [Share() for _ in range(self.count)]
        self.open = np.full(len(home), -1, dtype=np.int64)  # turns of jobs that are computed or given, and not settled
        self.has, self.copied, self.dirty = (np.zeros(len(home), dtype=bool) for _ in range(3))  # memories; copies; which are old
        self.keepers = keepers(troupe.hosts)
        self.copies = Copies(len(home), self.budget)  # where there is no other actor to have them
        self.deaths = 0
        self.flying: dict[Any, tuple[int, int]] = {}
        self.beginning: dict[Any, int] = {}
        self.bundle = troupe.put(bundled(setup))
        for k in range(self.count):
            self._begin(k)

    # Work

    def compute(self, blocks: list[Given], keep: Callable[[int, Rows], None]) -> None:
        """Gives each block's number and parts to `keep` as they come. Raises what a block raised, of several the first."""
        self._copied()
        own = [deque(at for at, one in enumerate(blocks) if one.home == k) for k in range(self.count)]
        anybody = deque(at for at, one in enumerate(blocks) if one.home is None)
        failed: dict[int, Exception] = {}
        self.flying, missing = {}, len(blocks)
        for share in self.shares:
            share.flying = 0
        while missing:
            self._deal(blocks, own, anybody)
            for answer in self._come():
                if (k := self.beginning.pop(answer, None)) is not None:
                    self._has_begun(k, answer, blocks, anybody)
                    continue
                if answer not in self.flying:  # of one that has died since
                    continue
                k, number = self.flying.pop(answer)
                try:
                    result = self.troupe.get(answer)
                except LostError as error:
                    self.flying[answer] = (k, number)
                    self._died(k, blocks, anybody, error)
                    continue
                self.shares[k].flying -= 1
                self._done(k, number)
                missing, self.deaths = missing - 1, 0
                if isinstance(result, Exception):
                    failed[number] = result
                else:
                    keep(number, tensors(result))
        if failed:
            raise failed[min(failed)]
        self._copy_what_is_long()

    def _deal(self, blocks: list[Given], own: list[deque[int]], anybody: deque[int]) -> None:
        """The dearest first, to whoever has least to do; a second one only while there is enough for all."""
        for depth in range(AHEAD):
            for k, share in enumerate(self.shares):
                if share.flying > depth or not (share.begun or own[k]):
                    continue
                if own[k]:
                    self._give(k, own[k].popleft(), blocks)
                elif anybody and share.begun and (depth == 0 or len(anybody) >= self.count):
                    self._give(k, anybody.popleft(), blocks)

    def _give(self, k: int, number: int, blocks: list[Given]) -> None:
        given, share = blocks[number], self.shares[k]
        call = Call(share.settled, given, number, "work", None, given.block.nodes, given.block.turn)
        share.settled = []
        self.flying[self._called(k, call)] = (k, number)
        share.flying += 1
        if self.remembers:
            share.calls.append(call)
            self.open[given.block.nodes] = given.block.turn

    def _called(self, k: int, call: Call) -> Any:
        if call.given is not None:
            return self.troupe.call(k, "work", pickle.dumps((call.settled, call.given.block)), *call.given.arrays)
        return self.troupe.call(k, call.method, call.settled, *([] if call.told is None else call.told))

    def _come(self) -> list[Any]:
        """Answers that have come; what has begun comes with them."""
        began = monotonic()
        while True:
            if found := self.troupe.ready([*self.flying, *self.beginning], 5.0):
                return list(found)
            if not self.flying and monotonic() - began > PATIENCE:
                raise HostError(f"Ray: no actor has begun within {PATIENCE:g} s; has the cluster room for all?")

    def _done(self, k: int, number: int) -> None:
        for call in reversed(self.shares[k].calls):
            if call.number == number:
                call.number = None
                return

    # Beginnings and ends

    def _begin(self, k: int) -> None:
        self.shares[k].begun = False
        self.beginning[self.troupe.call(k, "begin", self.bundle)] = k

    def _has_begun(self, k: int, answer: Any, blocks: list[Given], anybody: deque[int]) -> None:
        try:
            about = self.troupe.get(answer)
        except LostError as error:
            self._died(k, blocks, anybody, error)
            return
        if "error" in about:
            raise HostError(f"an actor can't compute: {about['error']}")
        if wrong := [f"{name} {about[name]}, not {self.about[name]}" for name in ABOUT if about[name] != self.about[name]]:
            raise SettingError("engine.name", f"an actor on {self.troupe.hosts[k]} would compute with {', '.join(wrong)}")
        self.shares[k].begun = True

    def _died(self, k: int, blocks: list[Given], anybody: deque[int], error: Exception) -> None:
        """A new actor in the place of one that is gone: its share as the last copy has it, then all that it was given since."""
        self.deaths += 1
        lost = sorted(number for one, number in self.flying.values() if one == k)
        if self.deaths > DEATHS:
            what = blocks[lost[0]].title if lost else "before the first job"
            raise HostError(f"{what}: {self.deaths} actors died in a row; the last one: {error}")
        self.flying = {answer: at for answer, at in self.flying.items() if at[0] != k}
        self.beginning = {answer: one for answer, one in self.beginning.items() if one != k}
        self.shares[k].flying = 0
        self.troupe.replace(k)
        if not self.remembers:
            anybody.extendleft(reversed(lost))
            self._begin(k)
            return
        self._settle_copy(k)
        self._begin(k)
        self._anew(k)
        for call in self.shares[k].calls:
            answer = self._called(k, call)
            if call.number is not None:
                self.flying[answer] = (k, call.number)
                self.shares[k].flying += 1
        for other in range(self.count):  # whose copy was there
            if self.keepers[other] == k:
                self.shares[other].sync, self.shares[other].whole = None, False
                self._copy(other, self.has & (self.home == other))

    def _anew(self, k: int) -> None:
        """Raises HostError where the copy is gone too."""
        written, gone = [], "the actors that had some nodes' memories, and their copies, died together"
        gone += "; the run goes on from its last checkpoint with `fedsim resume`"
        if not self.shares[k].whole:
            raise HostError(gone)
        for nodes in self._pieces(np.flatnonzero((self.home == k) & self.copied)):
            keeper = self.keepers[k]
            found = self.copies.read(k, nodes) if keeper is None else self.troupe.call(keeper, "copy", k, nodes)
            written.append(self.troupe.call(k, "write", [], nodes, found))
        try:
            for answer in written:
                self.troupe.get(answer)
        except LostError as error:
            raise HostError(gone) from error

    # Memories

    def settle(self, what: str, nodes: Ints) -> None:
        """Replies of nodes have arrived (`commit`) or never will (`drop`); told with the next call."""
        if not self.remembers:
            return
        for k in range(self.count):
            if len(mine := nodes[self.home[nodes] == k]):
                self.shares[k].settled.append((what, mine))
        self.open[nodes] = -1
        if what == "commit":
            self.has[nodes] = self.dirty[nodes] = True

    def read(self, nodes: Ints, method: str = "read") -> Iterator[tuple[Ints, Rows]]:
        """What nodes remember (or `outstanding`: come to), piece by piece, by share. Raises HostError where an actor stays dead."""
        for k in range(self.count):
            for piece in self._pieces(nodes[self.home[nodes] == k]):
                for _ in range(DEATHS):
                    self._tell(k)
                    try:
                        yield piece, tensors(self.troupe.get(self.troupe.call(k, method, [], piece)))
                        break
                    except LostError as error:
                        self.flying = {}
                        self._died(k, [], deque(), error)
                else:
                    raise HostError("an actor died again and again while its nodes' memories were read")

    def write(self, nodes: Ints, rows: Rows) -> None:
        """Nodes remember these rows [m, ...] from now on."""
        self._told("write", nodes, rows, nodes[:0], nodes[:0])
        self.has[nodes] = self.dirty[nodes] = True
        for k in range(self.count):
            self._copy(k, (self.home == k) & self.dirty)

    def wait(self, nodes: Ints, turn: Ints, rows: Rows) -> None:
        """Nodes come to remember these rows [m, ...] when the replies of their jobs arrive."""
        self._told("wait", nodes, rows, nodes, turn)
        self.open[nodes] = turn

    def _told(self, method: str, nodes: Ints, rows: Rows, whose: Ints, turn: Ints) -> None:
        for k in range(self.count):
            for at in self._pieces(np.flatnonzero(self.home[nodes] == k)):
                piece = self.troupe.put({name: array(part[torch.from_numpy(at)]) for name, part in rows.items()})
                open = (whose[at], turn[at]) if len(whose) else (whose, turn)
                self.shares[k].calls.append(call := Call([], None, None, method, (nodes[at], piece), *open))
                self._called(k, call)

    def _tell(self, k: int) -> None:
        """What became of replies, at once."""
        share = self.shares[k]
        if share.settled:
            share.calls.append(call := Call(share.settled))
            share.settled = []
            self._called(k, call)

    def _pieces(self, nodes: Ints) -> list[Ints]:
        count = -(-len(nodes) * self.each // PIECE)
        return np.array_split(nodes, count) if count else []

    # Copies

    def _copy_what_is_long(self) -> None:
        for k, share in enumerate(self.shares):
            held = sum(call.own for call in share.calls)
            if share.sync is None and (not share.whole or len(share.calls) > LONG or held * self.count > self.budget // 4):
                self._copy(k, (self.home == k) & self.dirty)

    def _copy(self, k: int, which: NDArray[np.bool_]) -> None:
        """What these nodes remember goes to whoever has the copy."""
        self._settle_copy(k)  # one after the other
        self._tell(k)
        nodes, keeper, answers = np.flatnonzero(which), self.keepers[k], []
        for piece in self._pieces(nodes):
            found = self.troupe.call(k, "read", [], piece)
            if keeper is None:
                answers.append((piece, found))
            else:
                answers.append(self.troupe.call(keeper, "stage", k, piece, found))
        self.dirty[nodes] = False
        self.shares[k].sync = Sync(answers, len(self.shares[k].calls), np.where(self.home == k, self.open, -1), nodes)
        if keeper is None:
            self._settle_copy(k)

    def _copied(self) -> None:
        """Takes note of copies that are whole."""
        for k, share in enumerate(self.shares):
            if share.sync and len(self.troupe.ready(share.sync.answers, 0)) == len(share.sync.answers):
                self._settle_copy(k)

    def _settle_copy(self, k: int) -> None:
        """A copy that is whole counts from now on; one that is not counts for nothing. Waits for it."""
        share, keeper, whole = self.shares[k], self.keepers[k], True
        if (sync := share.sync) is None:
            return
        share.sync = None
        try:
            for answer in sync.answers:
                if keeper is None:
                    self.copies.stage(k, answer[0], self.troupe.get(answer[1]))
                else:
                    self.troupe.get(answer)
        except LostError:
            whole = False
            self.dirty[sync.nodes] = True
        if keeper is None:
            self.copies.adopt(k, whole)
        else:
            self.troupe.call(keeper, "adopt", k, whole)
        if whole:
            share.whole = True
            self.copied[sync.nodes] = True
            share.calls = [*still_open(share.calls[: sync.calls], sync.open), *share.calls[sync.calls :]]
