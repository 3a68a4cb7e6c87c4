"""What codecs get through on one core: megabytes of float32 numbers a second, best of the trials."""

import torch

from fedsim.bench.figures import Figure, say, seconds
from fedsim.codecs import Blocks8, Codec, CountSketch, Ef21, Natural, PowerSgd, Qsgd, RandK, Sign, Srht, Ternary, TopK, Uniform
from fedsim.keys import fold, normal

ROWS, SIZE = 4, 1 << 18
TARGETS: dict[Codec, float | None] = {  # MB/s, there and back
    TopK(): 100,
    Blocks8(): 200,
    Qsgd(): 200,
    CountSketch(): 100,
    Srht(): 50,
    Uniform(bits=4): None,
    Natural(): None,
    Ternary(): None,
    Sign(): None,
    RandK(): None,
    PowerSgd(): None,
    Ef21(TopK()): None,
}


def codecs(trials: int) -> list[Figure]:
    """Of each codec: encoding and decoding, and encoding alone. `other` is what is wanted of both, or the same without a codec's work."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return [figure for codec, target in TARGETS.items() for figure in _codec(codec, target, trials)]
    finally:
        torch.set_num_threads(threads)


def _codec(codec: Codec, target: float | None, trials: int) -> list[Figure]:
    say(f"codecs: {codec.name}")
    key = fold(0, "bench", torch.arange(ROWS))
    parts = {"x": normal(key, SIZE)}
    memory = codec.init(parts)
    wire = codec.encode(parts, memory, key)
    codec.decode(wire, memory, key)
    megabytes = parts["x"].nbytes / 1e6
    encode, decode = [], []
    for _ in range(max(3, trials)):
        encode.append(seconds(lambda: codec.encode(parts, memory, key)))
        decode.append(seconds(lambda: codec.decode(wire, memory, key)))
    both, alone = megabytes / (min(encode) + min(decode)), megabytes / min(encode)
    wanted = target or 1.0
    name = codec.name if target or not hasattr(codec, "inner") else f"{codec.name} around {codec.inner.name}"
    return [
        Figure(f"codec {name}, MB/s both ways", both, wanted, both / wanted, target and 1.0),
        Figure(f"codec {name}, MB/s encoding", alone, wanted, alone / wanted, None),
    ]
