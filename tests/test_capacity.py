"""Scenario files that are meant to harm: each ends at once with one clear error."""

import os
import time
from pathlib import Path

import pytest
from launch import TEXT, call, write

from fedsim.base.errors import ScenarioError
from fedsim.scenario import load
from fedsim.scenario.capacity import DEEPEST, LARGEST, MOST

BOMB = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n" + "".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]\n" for i in range(1, 20))


def only(file: Path) -> str:
    """The one message of a file that can't be loaded, found within two seconds of CPU."""
    began = time.process_time()
    with pytest.raises(ScenarioError) as error:
        load(file)
    assert time.process_time() - began < 2
    [found] = error.value.problems
    return f"{found.line}:{found.column} {found.message}"


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (BOMB, f"14:25 more than {MOST:,} values, counted with what `*` repeats"),
        (f"about: {'[' * 800}{']' * 800}\n", f"10:{7 + DEEPEST} values within values, more than {DEEPEST} deep"),
        ("about:\n" + "".join(f"{' ' * i}a:\n" for i in range(1, 800)) + f"{' ' * 800}a: x\n", f"60:{DEEPEST + 1} values within values"),
        (f"about: '{'x' * LARGEST}'\n", "0:0 can't be read: it has over 1 MiB"),
        ('extends: "a\\0b"\n', "10:10 `a\0b` can't be read: embedded null byte"),
        ('sweep: {variants: {"\\e[2J": {}}}\n', "10:20 a key must be a word"),
        ('sweep: {variants: {"a\\nb": {}}}\n', "10:20 a key must be a word"),
        ('name: "\\e[31mred"\n', "10:7 name: `\x1b[31mred` can't be a folder's name"),
        ("extends: /dev/zero\n", "10:10 `/dev/zero` can't be read: it is no regular file"),
        ("extends: pipe\n", "10:10 `pipe` can't be read: it is no regular file"),
        ("extends: .\n", "10:10 `.` can't be read: it is a folder"),
        ("extends: small.yaml\n", "10:10 `extends` goes round in a circle: small.yaml -> small.yaml"),
        ("extends: loop\n", "10:10 `loop` can't be read: "),
        (f"extends: {'x' * 300}\n", f"10:10 `{'x' * 300}` can't be read: File name too long"),
        ("extends: [d0, d0]\n", "1:15 `extends` leads to more than 100 files"),
        (
            "sweep: {seeds: 0..9999999999999999999}\n",
            "10:16 sweep.seeds: `0..9999999999999999999` holds 10,000,000,000,000,000,000 numbers; at most 100,000 are due",
        ),
        (f"sweep: {{grid: {{{', '.join(f'a.b{i}: 0..9' for i in range(12))}}}}}\n", "10:149 sweep: 1,000,000,000,000 runs; at most"),
        ("name: ../../x\n", "10:7 name: `../../x` can't be a folder's name"),
        ("name: /tmp/x\n", "10:7 name: `/tmp/x` can't be a folder's name"),
        ("name: ..\n", "10:7 name: `..` can't be a folder's name"),
        ('name: "a\\nb"\n', "10:7 name: `a b` can't be a folder's name"),
        (f"name: {'x' * 300}\n", f"10:7 name: `{'x' * 50}` can't be a folder's name"),
    ],
)
def test_one_error_at_once(folder: Path, more: str, message: str) -> None:
    os.mkfifo("pipe")
    os.symlink("loop", "loop")
    for i in range(10):
        Path(f"d{i}").write_text(f"extends: [d{i + 1}, d{i + 1}]\n" if i < 9 else TEXT)
    assert only(write(Path(), TEXT + more)).startswith(message)


def test_a_scenario_may_be_a_pipe_nobody_writes_to(folder: Path) -> None:
    os.mkfifo("pipe")
    assert only(Path("pipe")) == "0:0 can't be read: it is no regular file"


def test_so_many_mistakes_are_enough(folder: Path) -> None:
    with pytest.raises(ScenarioError) as error:
        load(write(folder, TEXT + "".join(f"k{i}: 1\n" for i in range(3000))))
    assert len(error.value.problems) == 200


def test_no_sign_of_a_scenario_reaches_the_screen(folder: Path) -> None:
    (folder / "small.yaml").write_bytes(f"{TEXT}about:\t\x1b[31mred\n".encode())
    assert "\x1b" not in call("validate", "small.yaml").stderr
    for more in ('name: "\\e[31mred"\n', 'evaluate: {metrics: ["\\e[31mred"]}\n'):
        write(folder, TEXT + more)
        assert "\x1b" not in call("validate", "small.yaml").stderr
    write(folder, TEXT + 'sweep: {grid: {about: ["\\e[31mred"]}}\n')
    assert [run.label for run in load(folder / "small.yaml")] == ["about \ufffd[31mred seed 0"]


def test_where_runs_are_kept_is_plain_text(folder: Path) -> None:
    message = only(write(folder, TEXT.replace("track: none", 'track: {uri: "a\\0b"}')))
    assert message == "9:14 track.uri: a text on one line is due, without signs that can't be seen"
