"""Models as rows: a node's trainable parameters are one flat row of d numbers, many nodes are a matrix [n, d]."""

import hashlib
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

Rows = dict[str, Tensor]  # named parts; each has a leading row axis
Step = float | Tensor  # a number, or one a row [m, 1]
BUFFERS = "buffers"  # the part that the core carries beside a strategy's own: running statistics


def norm(x: Tensor) -> Tensor:
    """[..., 1]: Euclidean length of each row of x [..., d]."""
    return (x * x).sum(-1, keepdim=True).sqrt()


def shrink(x: Tensor, keep: Step) -> None:
    """x [m, ...] *= keep (a number, or one a row), in place; nothing is done where it is 1."""
    if isinstance(keep, Tensor):
        x.mul_(keep.view(-1, *[1] * (x.dim() - 1)))
    elif keep != 1:
        x.mul_(keep)


def subtract(x: Tensor, lr: Step, gradient: Tensor) -> None:
    """x [m, ...] -= lr (a number, or one a row) x gradient, in place, in the one form that gives the same bits everywhere."""
    if isinstance(lr, float):
        x.sub_(gradient, alpha=lr)
    else:
        x.sub_(lr.view(-1, *[1] * (x.dim() - 1)) * gradient)


def column(value: Step, live: int) -> Step:
    """Of the first rows, [live, 1] of [m] or [m, 1]; a number as it is."""
    return value.view(-1, 1)[:live] if isinstance(value, Tensor) else value


def as_sent(came: Rows, sent: Rows) -> Rows:
    """What codecs deliver, in the precision of what was sent."""
    return {name: rows.to(sent[name].dtype) if name in sent else rows for name, rows in came.items()}


def parted(rows: Rows) -> tuple[Rows, Rows]:
    """A strategy's own parts, and the running statistics that travel with them."""
    if BUFFERS not in rows:
        return rows, {}
    return {name: part for name, part in rows.items() if name != BUFFERS}, {BUFFERS: rows[BUFFERS]}


class Layout:
    """Which slice of a row is which named parameter.

    `size` is d, `names` the parameters in their order, `slices` and `shapes` have one entry a name.
    """

    def __init__(self, shapes: Mapping[str, Sequence[int]]) -> None:
        self.shapes = {name: torch.Size(shape) for name, shape in shapes.items()}
        self.slices: dict[str, slice] = {}
        end = 0
        for name, shape in self.shapes.items():
            self.slices[name] = slice(end, end + shape.numel())
            end += shape.numel()
        self.size = end

    @classmethod
    def of(cls, module: nn.Module) -> "Layout":
        """Of the parameters that require a gradient; tied ones stand once, under the first name."""
        return cls({name: p.shape for name, p in module.named_parameters() if p.requires_grad})

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(self.shapes)

    def views(self, x: Tensor) -> Rows:
        """Views [..., *shape] of x [..., d], by name."""
        return {name: x[..., part].view((*x.shape[:-1], *self.shapes[name])) for name, part in self.slices.items()}

    def join(self, parts: Mapping[str, Tensor], out: Tensor | None = None) -> Tensor:
        """[..., d] from tensors [..., *shape] by name; written into `out` if given."""
        flat = [self._flat(parts[name], shape) for name, shape in self.shapes.items()]
        return torch.cat(flat, -1) if out is None else torch.cat(flat, -1, out=out)

    @staticmethod
    def _flat(part: Tensor, shape: torch.Size) -> Tensor:
        return part.reshape(*part.shape[: part.dim() - len(shape)], shape.numel())

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Layout) and list(self.shapes.items()) == list(other.shapes.items())

    def __hash__(self) -> int:
        return hash(tuple(self.shapes.items()))


def model_hash(*rows: Tensor) -> str:
    """sha256, hex, of the models' numbers, and those of their running statistics."""
    digest = hashlib.sha256()
    for one in rows:
        digest.update(one.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
