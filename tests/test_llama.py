"""The pretrained Llama and its pieces: the figures that are known of it."""

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from fedsim.base.errors import SettingError
from fedsim.data.text_sources import Tokens as Corpus
from fedsim.data.text_sources import Tsv
from fedsim.data.wordpieces import Wordpieces, prompted, read_wordpieces
from fedsim.models import Tokens
from fedsim.models.llama import Llama, rotated

TINY = Wordpieces(
    (b"<unk>", b"<s>", b"</s>", *(b"?" for _ in range(256)), b" a", b"ab", b"b", b" ab", b" "), (0.0,) * 259 + (-1.0, -2, 0, -3, 0)
)


def test_the_pair_with_most_score_is_merged_first() -> None:
    # " ab": " a" + "b" (-1) before "ab" (-2), then both to " ab"; what has no piece is bytes
    assert TINY.encode("ab").tolist() == [262]
    assert TINY.encode("a b").tolist() == [259, 263, 261]
    assert TINY.encode("\u00e4").tolist() == [263, 3 + 0xC3, 3 + 0xA4]


def test_a_prompt_stands_behind_texts_that_are_cut() -> None:
    assert prompted(["ab ab ab", "a"], "a", TINY, 4).tolist() == [[1, 262, 262, 259], [1, 259, 259, 0]]
    with pytest.raises(SettingError, match="no room"):
        prompted(["a"], "a a a", TINY, 4)


def test_rotation_keeps_lengths_and_knows_distances_only() -> None:
    x = torch.ones(1, 6, 1, 4)
    turned = rotated(x)[0, :, 0]
    assert torch.allclose(turned.norm(dim=1), torch.full((6,), 2.0))
    assert torch.allclose(turned[1] @ turned[3], turned[2] @ turned[4])
    assert torch.equal(turned[0], x[0, 0, 0])


def loss(model: nn.Module, pieces: Wordpieces, text: str) -> float:
    ids = torch.tensor([1, *pieces.encode(text)])[None]
    outputs: Tensor = model(ids[:, :-1])
    return nn.functional.cross_entropy(outputs[0], ids[0, 1:]).item()


def test_it_knows_stories_and_not_shakespeare(data: Path) -> None:
    model, pieces = Llama(weights="stories260k").build(Tokens(64, 512, True), 512), read_wordpieces("stories260k")
    assert sum(p.numel() for p in model.parameters()) == 260_032
    with torch.no_grad():
        assert loss(model, pieces, "Once upon a time, there was a little girl named Lily. She loved to play outside.") == pytest.approx(
            0.25, abs=0.05
        )
        assert loss(model, pieces, "First Citizen: Before we proceed any further, hear me speak.") == pytest.approx(3.3, abs=0.1)
        ids, text = torch.tensor([[1, *pieces.encode("Once upon a time")]]), b""
        for _ in range(12):
            ids = torch.cat([ids, model(ids)[:, -1:].argmax(-1)], 1)
            text += pieces.pieces[int(ids[0, -1])]
    assert text.startswith(b", there was a little girl named")


def test_a_class_is_the_word_that_would_come_next(data: Path) -> None:
    whole = Llama(weights="stories260k").build(Tokens(8, 512, True), 512)
    few = Llama(weights="stories260k", words=("terrible", "great")).build(Tokens(8, 512), 2)
    x = torch.tensor([[1, 403, 407, 261, 0, 0, 0, 0]])
    pieces = read_wordpieces("stories260k")
    at = [int(pieces.encode(word)[0]) for word in ("terrible", "great")]
    assert torch.allclose(few(x)[0], whole(x)[0, 3, at], atol=1e-5)


def test_sources_make_pieces(data: Path) -> None:
    found = Tsv("sst2", tokens="pieces", prompt="it was", length=16).load(Path())
    assert found.vocabulary == 512 and found.x.shape == (67349, 16) and set(found.x[:, 0]) == {1}
    corpus = Corpus("tinyshakespeare", tokens="pieces", length=32).load(Path())
    assert corpus.vocabulary == 512 and corpus.x.shape[1] == 32


@pytest.mark.parametrize(
    ("settings", "shape", "message"),
    [
        ({}, Tokens(8, 300, True), "has 512 tokens, the data 300; set `task.data.tokens: pieces`"),
        ({}, Tokens(8, 512), "2 words are needed"),
        ({"words": ("great", "good")}, Tokens(8, 512), "two begin with the same piece"),
        ({"heads": 7}, Tokens(8, 512), "7 heads of 4 groups don't divide"),
    ],
)
def test_what_does_not_fit_is_refused(data: Path, settings: dict[str, object], shape: Tokens, message: str) -> None:
    with pytest.raises(SettingError, match=message):
        Llama(weights="stories260k", **settings).build(shape, 300 if shape.each else 2)  # type: ignore[arg-type]
