"""Scenarios with texts, adapters, statistics and dropout run whole, leave what they say, and run again to the same model."""

from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
from launch import refused, write

from fedsim.run.building import Tasks, build
from fedsim.run.runner import Run
from fedsim.scenario import load

OWN = '''
import numpy as np
import torch

def verses(count: int = 40):
    """Next letters of cyclic verses of unequal length, by speaker."""
    lengths = 3 + np.arange(count) % 4
    x = 1 + (np.arange(count)[:, None] + np.arange(6)) % 5
    x[np.arange(6) >= lengths[:, None]] = 0
    y = np.where(x > 0, np.roll(x, -1, 1), -1)
    y[:, -1] = -1
    return {"x": x, "y": np.where(y > 0, y, -1), "speaker": np.arange(count) % 4}

class Dropping(torch.nn.Module):
    def __init__(self, vocabulary: int, outputs: int):
        super().__init__()
        self.embed, self.drop = torch.nn.Embedding(vocabulary, 8), torch.nn.Dropout(0.2)
        self.head = torch.nn.Linear(8, outputs)

    def forward(self, x):
        return self.head(self.drop(self.embed(x)))
'''
VERSES = "task: {data: 'own_texts:verses', partition: {name: natural, by: speaker}, model: MODEL}\n"
REST = "strategy: fedavg\ntrain: {epochs: 2, batch: 4, lr: 0.5}\nschedule: {name: rounds, cohort: 2}\nstop: {rounds: 3}\ntrack: none\n"


@pytest.fixture
def own(folder: Path) -> Path:
    (folder / "own_texts.py").write_text(OWN)
    return folder


def ran(folder: Path, model: str, *changes: str, text: str = VERSES) -> tuple[Run, dict[str, Any]]:
    [loaded] = load(write(folder, text.replace("MODEL", model) + REST), changes)
    run = build(loaded, Tasks())
    info = run.execute(folder / f"run-{len(list(folder.iterdir()))}")
    assert info["status"] == "finished", info["reason"]
    return run, info


@pytest.mark.parametrize(
    "model",
    [
        "{name: char_lstm, embedding: 4, hidden: 8, layers: 1}",
        "{name: transformer, width: 8, layers: 1, heads: 2, tied: true}",
        "'own_texts:Dropping'",
    ],
)
def test_next_letters_are_learnt(own: Path, model: str) -> None:
    run, _ = ran(own, model, "engine.plan=looped")
    assert run.records[-1]["test/loss"] < run.records[0]["test/loss"] < 2.0
    assert run.fed.task.classes == 6


def test_dropout_does_not_depend_on_chunks_and_processes(own: Path) -> None:
    info = ran(own, "'own_texts:Dropping'")[1]
    assert ran(own, "'own_texts:Dropping'", "engine.chunk=1", "engine.processes=2")[1]["model"] == info["model"]


def test_adapters_are_trained_on_a_run_s_model_and_only_they_are_kept(own: Path) -> None:
    first, _ = ran(own, "{name: transformer, width: 8, layers: 1, heads: 2}", "engine.plan=looped")
    assert first.writer is not None
    file = first.writer.folder / "model.safetensors"
    inner = f"{{name: lora, rank: 2, weights: {file.relative_to(own)}, inner: {{name: transformer, width: 8, layers: 1, heads: 2}}}}"
    second, info = ran(own, inner, "engine.plan=looped")
    assert second.records[0]["test/loss"] == pytest.approx(first.records[-1]["test/loss"], rel=1e-6)
    assert second.records[-1]["test/loss"] < second.records[0]["test/loss"]
    assert info["parameters"] == second.fed.task.layout.size < first.fed.task.layout.size
    assert second.writer is not None
    kept = safetensors.torch.load_file(second.writer.folder / "model.safetensors")
    assert sum(part.numel() for part in kept.values()) == info["parameters"]
    assert str(file) in (second.writer.folder / "scenario.yaml").read_text()  # runs from anywhere


def test_statistics_are_kept_with_the_model_and_the_setting_matters(folder: Path) -> None:
    text = "task: {data: digits, partition: {name: iid, nodes: 60}, model: {name: resnet18, norm: batch, width: 2}, buffers: KEEP}\n"
    found = {}
    for keep in ("average", "local"):
        run, info = ran(folder, "", "train.lr=0.05", "train.epochs=1", "stop.rounds=2", text=text.replace("KEEP", keep))
        assert run.fed.task.keep_buffers == keep and run.writer is not None
        parts = safetensors.torch.load_file(run.writer.folder / "model.safetensors")
        assert (parts["1.running_var"] != 1).all() and parts["1.running_var"].shape == (2,)
        found[keep] = (info["final"]["traffic/bytes"], parts["1.running_var"])
    assert found["average"][0] > found["local"][0]


@pytest.mark.parametrize(
    ("model", "text"),
    [
        ("{name: lora, inner: {name: transformer, heads: 3}}", "task.model.inner.heads: 3 heads don't divide a width of 64"),
        ("{name: lora, inner: char_lstm, weights: gone.safetensors}", "task.model.weights: `gone.safetensors` can't be read"),
        ("{name: lora, rank: 2}", "task.model.inner: is needed"),
        ("mlp", "task.model: samples of numbers are needed"),
    ],
)
def test_what_does_not_fit_is_said_at_its_place(own: Path, model: str, text: str) -> None:
    assert text in refused("validate", write(own, VERSES.replace("MODEL", model) + REST))
