"""What a codec is: it turns named rows into a wire (typed rows) and back."""

# m: rows, d: numbers of a part

import re
from math import ceil, prod
from typing import ClassVar

from torch import Tensor

from fedsim.base.errors import Unfit
from fedsim.base.keys import fold
from fedsim.base.rows import Layout, Rows
from fedsim.settings.part import Part

_MARKED = re.compile(r"(.*) of (\d+(?:x\d+)*)")  # `NAME of SHAPE`
_AS_IS = " as is"


class Codec(Part):
    """Pure functions on rows. `lossless` codecs are not run in a simulation: they deliver what was sent, and only their size counts.

    `encode` is the sender's side and `decode` the receiver's; both see the same memory (one row a link, {} by default) and key
    (int64, one a row), and `decode` returns the memory of after. Memory is kept where the message arrives and dropped where it does not.
    Sizes of what is encoded follow from shapes alone. `encode` raises Unfit where settings have no meaning for parts of such shapes.

    Quality, where it is known for every row v of `size` numbers, else None: `alpha` of E|C(v) - v|^2 <= (1 - alpha) |v|^2, and
    `omega` of E C(v) = v, E|C(v) - v|^2 <= omega |v|^2. The factor 1 / (1 + omega) makes the second the first.
    """

    slot: ClassVar[str] = "codec"
    modules: ClassVar[tuple[str, ...]] = (
        "fedsim.codecs.plain",
        "fedsim.codecs.sparse",
        "fedsim.codecs.quantised",
        "fedsim.codecs.blocks",
        "fedsim.codecs.lowrank",
        "fedsim.codecs.scalar",
        "fedsim.codecs.sketches",
        "fedsim.codecs.feedback",
    )
    lossless: ClassVar[bool] = False
    linear: ClassVar[bool] = False  # what arrives is a linear map of what is sent, through which slopes flow

    def fitted(self, layout: Layout) -> "Codec":
        """This codec for models of a layout."""
        return self

    def init(self, parts: Rows) -> Rows:
        """Memory of a fresh link, a row for each row of parts."""
        return {}

    def encode(self, parts: Rows, memory: Rows, key: Tensor) -> Rows:
        return parts

    def decode(self, wire: Rows, memory: Rows, key: Tensor) -> tuple[Rows, Rows]:
        return wire, memory

    def heard(self, memory: Rows) -> Rows:
        """What of a memory the receiver needs: `decode` reads nothing else."""
        return memory

    def size(self, wire: Rows) -> int:
        """Bytes of one row's message."""
        from fedsim.codecs.wire import row_bytes

        return row_bytes(wire)

    def carry(self, parts: Rows, memory: Rows, key: Tensor) -> tuple[Rows, Rows]:
        """Both ends at once: what arrives, and the memory of after."""
        return self.decode(self.encode(parts, memory, key), memory, key)

    def alpha(self, size: int) -> float | None:
        return None

    def omega(self, size: int) -> float | None:
        return None

    def shortening(self, size: int) -> float:
        """The factor that makes what arrives of a codec that is right in the mean a contraction; 1 for others."""
        return 1 / (1 + (self.omega(size) or 0.0))

    def numbers(self, size: int) -> int:
        """How many real numbers it sends of so many, for the next in a chain."""
        return size


class Flat(Codec):
    """Codecs that take each part by itself, as rows x [m, d] of real numbers, and remember nothing.

    On the wire a part is `NAME of SHAPE` and whatever else it needs under `NAME FIELD`. Whole numbers, single numbers and what `whole`
    says travel as they are.
    """

    abstract: ClassVar[bool] = True
    fields: ClassVar[tuple[str, ...]] = ()  # besides the first

    def squeeze(self, x: Tensor, key: Tensor) -> tuple[Tensor, ...]:
        """The fields of x [m, d], each [m, ...]; key [m]. Raises Unfit."""
        raise NotImplementedError

    def coded(self, name: str, x: Tensor, memory: Rows, key: Tensor) -> tuple[Tensor, ...]:
        """`squeeze` of the part `name`; for codecs that do remember."""
        return self.squeeze(x, fold(key, name))

    def restore(self, coded: tuple[Tensor, ...], size: int, key: Tensor) -> Tensor:
        """[m, size] from what `squeeze` made."""
        raise NotImplementedError

    def whole(self, size: int) -> bool:
        """Whether parts of so many numbers travel as they are. Raises Unfit."""
        return False

    def encode(self, parts: Rows, memory: Rows, key: Tensor) -> Rows:
        wire = {}
        for name, rows in parts.items():
            if rows[0].numel() < 2 or not rows.is_floating_point() or self.whole(rows[0].numel()):
                wire[name + _AS_IS if self._clashes(name) else name] = rows
                continue
            first, *others = self.coded(name, rows.flatten(1), memory, key)
            wire[f"{name} of {'x'.join(map(str, rows.shape[1:]))}"] = first
            wire |= {f"{name} {field}": coded for field, coded in zip(self.fields, others, strict=True)}
        return wire

    def decode(self, wire: Rows, memory: Rows, key: Tensor) -> tuple[Rows, Rows]:
        parts: Rows = {}
        for name, rows in wire.items():
            if found := _MARKED.fullmatch(name):
                plain, sizes = found[1], [int(word) for word in found[2].split("x")]
                coded = rows, *(wire[f"{plain} {field}"] for field in self.fields)
                parts[plain] = self.restore(coded, prod(sizes), fold(key, plain)).view(len(rows), *sizes)
            elif not name.endswith(tuple(f" {field}" for field in self.fields)):
                parts[name.removesuffix(_AS_IS)] = rows
        return parts, memory

    def _clashes(self, name: str) -> bool:
        """Whether a part that travels as it is would be taken for a coded one."""
        return bool(_MARKED.fullmatch(name)) or name.endswith((_AS_IS, *(f" {field}" for field in self.fields)))


def share_of(size: int, count: int | None, fraction: float) -> int:
    """How many of `size`: `count`, or `fraction` of them rounded up. Raises Unfit for more than there are."""
    if count is not None and count > size:
        raise Unfit(f"`count: {count}` of a part of {size:,} numbers")
    return count or max(1, ceil(size * fraction - 1e-9))
