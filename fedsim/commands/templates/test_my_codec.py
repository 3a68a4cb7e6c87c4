"""MyCodec: numbers worked out by hand, its bytes, and its scenario."""

from pathlib import Path

import torch
from my_codec import MyCodec

from fedsim.run.building import Tasks, build
from fedsim.scenario import load

KEY = torch.zeros(2, dtype=torch.int64)  # one a row


def test_two_rows_by_hand() -> None:
    # levels at 0, 1/2 and 1 of the greatest, which is 4 in the first row; a row of zeros stays one
    rows = torch.tensor([[4.0, -1.9, 0.9], [0.0, 0.0, 0.0]])
    arrived, _ = MyCodec(levels=2).carry({"update": rows}, {}, KEY)
    assert arrived["update"].tolist() == [[4, -2, 0], [0, 0, 0]]


def test_a_byte_a_number() -> None:
    codec = MyCodec()
    short, long = (codec.size(codec.encode({"update": torch.ones(2, d)}, {}, KEY)) for d in (1000, 2000))
    assert long - short == 1000


def test_what_is_lost_is_at_most_half_a_step() -> None:
    x = torch.linspace(-1, 1, 401).view(1, -1)
    arrived, _ = MyCodec(levels=7).carry({"update": x}, {}, KEY[:1])
    assert (arrived["update"] - x).abs().max() <= 0.5 / 7 + 1e-6


def test_the_scenario_sends_less(tmp_path: Path) -> None:
    sent = []
    for uplink in ("uplink.levels=7", "uplink=none"):
        [first] = load(Path(__file__).with_name("my_codec.yaml"), ["track=none", "sweep=null", uplink], smoke=True)
        info = build(first, Tasks()).execute(tmp_path / uplink)
        assert info["status"] == "finished"
        sent.append(info["final"]["traffic/bytes_up"])
    assert sent[0] < 0.3 * sent[1]
