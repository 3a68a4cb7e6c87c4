"""What codecs get through on one core: megabytes of float32 numbers a second, best of the trials."""

import torch

from fedsim.base.keys import fold, normal
from fedsim.bench.figures import Figure, say, seconds
from fedsim.codecs import Blocks8, Codec, CountSketch, Ef21, Natural, PowerSgd, Qsgd, RandK, Sign, Srht, Ternary, TopK, Uniform

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
    """Of each codec: encoding and decoding, and encoding alone. `other` is what is wanted of both, or what a copy of the numbers takes."""
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
    encode, decode, copy = [], [], []
    for _ in range(max(3, trials)):
        encode.append(seconds(lambda: codec.encode(parts, memory, key)))
        decode.append(seconds(lambda: codec.decode(wire, memory, key)))
        copy.append(seconds(parts["x"].clone))
    both, alone, plain = megabytes / (min(encode) + min(decode)), megabytes / min(encode), megabytes / min(copy)
    name = f"{codec.name} around {codec.inner.name}" if isinstance(codec, Ef21) else codec.name
    there_and_back, there = f"codec {name}, MB/s there and back", f"codec {name}, MB/s there"
    first = (
        Figure(there_and_back, both, plain, both / plain, None)
        if target is None
        else Figure(there_and_back, both, target, both / target, 1.0)
    )
    return [first, Figure(there, alone, plain, alone / plain, None)]
