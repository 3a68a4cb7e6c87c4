"""What travels, as bytes. A codec turns named rows into a wire (typed rows) and back; codecs wrap codecs."""

from fedsim.codecs.base import Codec, Flat
from fedsim.codecs.blocks import Blocks8
from fedsim.codecs.feedback import Ef14, Ef21
from fedsim.codecs.lowrank import PowerSgd
from fedsim.codecs.plain import BFloat16, Chain, Float16, Identity
from fedsim.codecs.quantised import Natural, Qsgd, Sign, Ternary, Uniform
from fedsim.codecs.sketches import Ams, CountSketch, GaussianSketch, Sketch, SparseSketch, Srht
from fedsim.codecs.sparse import RandK, Threshold, TopK
from fedsim.codecs.wire import pack, row_bytes, unpack

__all__ = [
    "Ams",
    "BFloat16",
    "Blocks8",
    "Chain",
    "Codec",
    "CountSketch",
    "Ef14",
    "Ef21",
    "Flat",
    "Float16",
    "GaussianSketch",
    "Identity",
    "Natural",
    "PowerSgd",
    "Qsgd",
    "RandK",
    "Sign",
    "Sketch",
    "SparseSketch",
    "Srht",
    "Ternary",
    "Threshold",
    "TopK",
    "Uniform",
    "pack",
    "row_bytes",
    "unpack",
]
