import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fedsim.base.errors import RunError
from fedsim.codecs.scalar import Log8Byte, Log16NineBit, Scalars

CODECS = [Log8Byte(), Log16NineBit()]
KEY = torch.zeros(1, dtype=torch.int64)
ENDS = {"log8_byte": (math.exp(-63 / 8), math.exp(63 / 8)), "log16_9bit": (math.exp(-127 / 16), math.exp(127 / 16))}
ERRORS = {"log8_byte": math.exp(1 / 16) - 1, "log16_9bit": math.exp(1 / 32) - 1}


def there_and_back(codec: Scalars, *numbers: float) -> list[float]:
    wire = codec.encode({"p": torch.tensor([numbers])}, {}, KEY)
    return codec.decode(wire, {}, KEY)[0]["p"][0].tolist()


def test_bytes_by_hand() -> None:
    # round(8 ln 2.5) = round(7.33) = 7; the byte is 64 + 7, and 128 more for negative numbers; 0 is zero
    wire = Log8Byte().encode({"p": torch.tensor([[0, 1, -1, 2.5, -2.5]])}, {}, KEY)
    assert [rows.tolist() for rows in wire.values()] == [[[0, 64, 192, 71, 199]]]
    assert there_and_back(Log8Byte(), 2.5) == [pytest.approx(math.exp(7 / 8))]
    assert there_and_back(Log16NineBit(), -2.5) == [pytest.approx(-math.exp(15 / 16))]


@pytest.mark.parametrize("codec", CODECS)
@given(numbers=st.lists(st.floats(width=32, allow_nan=False), min_size=1, max_size=20))
def test_odd_monotone_idempotent_and_near(codec: Scalars, numbers: list[float]) -> None:
    numbers = sorted(numbers)
    found = there_and_back(codec, *numbers)
    assert found == sorted(found)
    assert there_and_back(codec, *found) == found
    assert there_and_back(codec, *(-number for number in numbers)) == [-value for value in found]
    least, most = ENDS[codec.name]
    for number, value in zip(numbers, found, strict=True):
        if least <= abs(number) <= most:
            assert abs(value / number - 1) <= ERRORS[codec.name] * (1 + 1e-6)
        elif number:
            assert abs(value) == pytest.approx(least if abs(number) < 1 else most)
        else:
            assert value == 0


@pytest.mark.parametrize(("codec", "size"), [(CODECS[0], 11), (CODECS[1], 13)])
def test_a_message_is_its_payload(codec: Scalars, size: int) -> None:
    parts = {"p": torch.linspace(-3, 3, 11)[None], "count": torch.tensor([[7]], dtype=torch.uint8)}
    wire = codec.encode(parts, {}, KEY)
    message = codec.pack(wire)
    assert len(message) == codec.size(wire) == size + 1
    assert {name: rows.tolist() for name, rows in codec.unpack(message, parts).items()} == {n: r.tolist() for n, r in wire.items()}
    with pytest.raises(RunError, match=f"a message of {size} bytes; `{codec.name}` makes {size + 1}"):
        codec.unpack(message[:-1], parts)


def test_what_is_never_sent_is_refused() -> None:
    like = {"p": torch.zeros(1, 1)}
    with pytest.raises(RunError, match="byte 128"):
        Log8Byte().decode(Log8Byte().unpack(b"\x80", like), {}, KEY)
    for codec in CODECS:
        with pytest.raises(RunError, match=f"nan.*`{codec.name}`"):
            codec.encode({"p": torch.tensor([[1, math.nan]])}, {}, KEY)
