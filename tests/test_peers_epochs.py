"""Who is out from when on, and what training hears of it: the decisions alone, without a network."""

from collections.abc import Mapping
from multiprocessing import Pipe
from pathlib import Path
from typing import Any

import pytest

from fedsim.base.errors import BrokenMessage
from fedsim.deploy.peers import letters
from fedsim.deploy.peers.epochs import Epochs, Last
from fedsim.deploy.peers.post import Post

A, B, C, D = (letter * 16 for letter in (b"a", b"b", b"c", b"d"))


class Told(list[tuple[bytes, str, Mapping[str, Any]]]):
    def __call__(self, worker: bytes, kind: str, what: Mapping[str, Any]) -> int:
        self.append((worker, kind, what))
        return len(self)


def epochs() -> tuple[Epochs, Told]:
    told = Told()
    found = Epochs(told)
    found.workers = {A: [0, 1], B: [2], C: [3], D: [4]}
    return found, told


def test_the_last_step_that_anybody_heard_is_the_last_in_which_a_node_takes_part() -> None:
    found, told = epochs()
    found.lost(C)
    assert [(worker, kind) for worker, kind, _ in told] == [(A, "suspect"), (B, "suspect"), (D, "suspect")]
    assert found.answer(1, {"3": [7, 6]}) == found.answer(2, {"3": [8, 7]}) == []
    assert found.answer(3, {"3": [-1, -1]}) == [3] and found.gone == {3: Last(8, 7)}
    assert [what["gone"] for _, kind, what in told if kind == "epoch"] == [{3: 8}] * 3
    assert {worker: what["forward"] for worker, kind, what in told if kind == "epoch"} == {A: {}, B: {3: [0, 3]}, D: {}}


def test_who_is_lost_while_others_answer_is_not_waited_for() -> None:
    found, _ = epochs()
    found.lost(C)
    found.answer(1, {"3": [5, 4]})
    found.lost(B)
    assert found.answer(2, {"3": [6, 5]}) == []  # of the question before
    assert found.answer(4, {"2": [5, 4], "3": [5, 4]}) == [] and found.answer(5, {"2": [6, 5], "3": [5, 4]}) == [2, 3]
    assert found.gone == {2: Last(6, 5), 3: Last(5, 4)} and found.live == [A, D]


def test_two_neighbours_have_to_say_so() -> None:
    found, _ = epochs()
    found.suspect(C, A)
    found.suspect(C, A)
    assert found.live == [A, B, C, D]
    found.suspect(C, D)
    assert found.live == [A, B, D]


@pytest.fixture
def post(tmp_path: Path) -> Post:
    ours, theirs = Pipe()
    found = Post(theirs, tmp_path)
    found.host, found.out = {0: 0, 1: 1, 2: 2}, ours  # type: ignore[attr-defined]

    def letter(tag: str, said: dict[int, bytes]) -> None:
        letters.write(tmp_path / tag, {"tag": tag, "round": 3}, said)
        ours.send(("letter", str(tmp_path / tag)))
        found.read()

    found.letter = letter  # type: ignore[attr-defined]
    return found


def read(message: bytes) -> bytes:
    if message == b"bad":
        raise BrokenMessage("bad")
    return message


def test_messages_come_early_and_from_several(post: Any) -> None:
    post.letter("5", {1: b"next"})
    post.letter("4", {1: b"x", 2: b"y"})
    assert post.hear("4", [2, 1], read) == {2: b"y", 1: b"x"} and post.hear("5", [1], read) == {1: b"next"}


def test_a_step_ends_without_a_node_that_is_gone_before_it(post: Any) -> None:
    post.letter("4", {1: b"x"})
    post.out.send(("suspect", 9, [2]))
    post.out.send(("epoch", {2: 3}, {}))
    assert post.hear("4", [1, 2], read) == {1: b"x"}
    assert post.out.recv() == ("report", {"suspect": 9, "last": {2: (-1, -1)}})


def test_what_others_lack_is_forwarded_and_broken_messages_have_not_come(post: Any) -> None:
    post.letter("4", {1: b"bad", 2: b"y"})
    post.out.send(("suspect", 9, [1, 2]))
    post.out.send(("epoch", {1: 3, 2: 4}, {2: [0]}))
    post.out.send(("arrived", 0))
    assert post.hear("4", [1, 2], read) == {2: b"y"}
    assert post.out.recv() == ("broken", 1, "bad")
    assert post.out.recv() == ("report", {"suspect": 9, "last": {1: (3, 2), 2: (4, 3)}})
    kind, name, workers = post.out.recv()
    about = letters.head(Path(name))
    assert (kind, workers, about["tag"]) == ("letter", [0], "4") and dict(letters.messages(Path(name), about)) == {2: b"y"}
