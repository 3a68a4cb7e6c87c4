"""Messages as bytes: what comes back, and what is refused."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fedsim.base.errors import BrokenMessage
from fedsim.base.keys import fold
from fedsim.codecs import TopK, pack, unpack
from fedsim.codecs.bits import pack_codes, unpack_codes, words

MESSAGE = pack(TopK(count=2).encode({"x": torch.tensor([[1.0, -4.0, 0.5, 3.0, 2.0] * 5])}, {}, torch.tensor([0])))


@given(st.integers(0, 8 * len(MESSAGE) - 1), st.integers(0, 8 * len(MESSAGE) - 1))
def test_a_message_with_a_wrong_bit_or_two_is_refused(first: int, second: int) -> None:
    broken = int.from_bytes(MESSAGE, "little") ^ (1 << first)
    broken ^= 0 if second == first else 1 << second
    with pytest.raises(BrokenMessage, match=r"its checksum is wrong$"):
        unpack(broken.to_bytes(len(MESSAGE), "little"))


@given(st.integers(0, len(MESSAGE) - 1))
def test_a_message_that_is_cut_short_is_refused(length: int) -> None:
    with pytest.raises(BrokenMessage, match="has no header" if length < 8 else "cut short"):
        unpack(MESSAGE[:length])


def test_what_is_no_message_is_refused_also_with_a_right_checksum() -> None:
    import zlib

    plain = (4).to_bytes(8, "little") + b"{ no"
    message = plain[:4] + zlib.crc32(plain).to_bytes(4, "little") + plain[8:]
    with pytest.raises(BrokenMessage, match="no safetensors"):
        unpack(message)
    with pytest.raises(BrokenMessage, match="cut short or was changed"):
        unpack(MESSAGE + b"\0")


@given(st.integers(1, 8), st.integers(1, 40), st.integers(1, 3), st.integers(0, 99))
def test_codes_are_packed_in_their_bits_the_first_lowest(width: int, count: int, rows: int, seed: int) -> None:
    codes = (words(fold(seed, torch.arange(rows)), slice(0, count)) & ((1 << width) - 1)).to(torch.uint8)
    packed = pack_codes(codes, width)
    assert packed.shape == (rows, -(-count * width // 8))
    assert torch.equal(unpack_codes(packed, width, count), codes)
    for row, line in zip(codes.tolist(), packed.tolist(), strict=True):
        assert int.from_bytes(bytes(line), "little") == sum(code << width * at for at, code in enumerate(row))


def test_words_do_not_depend_on_which_are_drawn_together() -> None:
    key = fold(3, torch.arange(2))
    assert torch.equal(torch.cat([words(key, slice(0, 6)), words(key, slice(6, 11))], 1), words(key, slice(0, 11)))
