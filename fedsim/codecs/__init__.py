"""What travels, as bytes. A codec turns named rows into a wire (typed rows) and back; codecs wrap codecs."""

from fedsim.codecs.base import Codec, Flat
from fedsim.codecs.blocks import Blocks8
from fedsim.codecs.feedback import Ef21
from fedsim.codecs.plain import BFloat16, Chain, Float16, Identity
from fedsim.codecs.quantised import Natural, Qsgd, Sign, Ternary, Uniform
from fedsim.codecs.sparse import TopK
from fedsim.codecs.wire import pack, row_bytes, unpack

__all__ = [
    "BFloat16",
    "Blocks8",
    "Chain",
    "Codec",
    "Ef21",
    "Flat",
    "Float16",
    "Identity",
    "Natural",
    "Qsgd",
    "Sign",
    "Ternary",
    "TopK",
    "Uniform",
    "pack",
    "row_bytes",
    "unpack",
]
