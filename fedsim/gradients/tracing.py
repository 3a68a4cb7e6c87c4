"""Functions as graphs of plain tensor operations: traced once for a shape, without what changes nothing."""

from collections.abc import Callable, Iterable, Sequence
from operator import getitem
from typing import Any, cast

import torch
from torch import Tensor
from torch.fx import Graph, GraphModule, Node
from torch.fx.node import map_arg
from torch.utils._python_dispatch import TorchDispatchMode

from fedsim.base.rows import shrink

aten = torch.ops.aten
VIEWS = (aten.view.default, aten._unsafe_view.default)
SAME_NUMBERS = (aten.view.default, aten._unsafe_view.default, aten.expand.default, aten.unsqueeze.default, aten.detach.default)
MADE = (torch.ones, aten.ones.default, aten.full.default, aten.zeros.default, aten.new_zeros.default, aten.arange.default)


class _Recorder(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Writes every operation on tensors into a graph as it is done; tensors from outside become constants.

    What torch's make_fx does for tensors of known shapes, without the second that importing its compilers takes.
    """

    def __init__(self, args: Sequence[Tensor]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.graph, self.constants = Graph(), dict[str, Tensor]()
        self.nodes: dict[int, tuple[Tensor, Node]] = {}  # by identity; the tensor is held, so that no other one gets its number
        for place, tensor in enumerate(args):
            self.note(tensor, self.graph.placeholder(f"arg{place}"))

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # nothing compiles in here, and skipping would import the compiler

    def note(self, tensor: Tensor, node: Node) -> None:
        node.meta["like"] = tensor
        self.nodes[id(tensor)] = tensor, node

    def node_of(self, tensor: Tensor) -> Node:
        if id(tensor) not in self.nodes:
            name = f"constant{len(self.constants)}"
            self.constants[name] = tensor
            self.note(tensor, self.graph.get_attr(name))
        return self.nodes[id(tensor)][1]

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        named = kwargs or {}
        result = func(*args, **named)
        node = self.graph.call_function(func, self._noted(args), {name: self._noted(one) for name, one in named.items()})
        if isinstance(result, Tensor):
            self.note(result, node)
        elif isinstance(result, tuple | list):
            for place, one in enumerate(result):
                if isinstance(one, Tensor):
                    self.note(one, self.graph.call_function(getitem, (node, place)))
        return result

    def _noted(self, given: Any) -> Any:
        """What an operation is given, with nodes for tensors."""
        if isinstance(given, Tensor):
            return self.node_of(given)
        return type(given)(map(self._noted, given)) if isinstance(given, tuple | list) else given


def traced(function: Callable[..., Any], args: Sequence[Tensor], slopes: int = 0, few: bool = False) -> tuple[GraphModule, list[bool]]:
    """The function for arguments of these shapes, as aten operations, shortened: each operation costs a call a step.

    Those of its first `slopes` results that are products of matrices are left as their two factors; the list says which these are.
    So `descend` takes product and step as one operation, and `write` makes the product where it belongs. With `few` operations sums over
    a batch, and what is added to a product, are products too: one launch of a GPU, not two. On a CPU they have other bits.
    """
    recorder = _Recorder(args)
    with recorder:
        results = function(*args)
    graph, root = recorder.graph, torch.nn.Module()
    graph.output(recorder.node_of(results) if isinstance(results, Tensor) else tuple(recorder.node_of(one) for one in results))
    for node in list(graph.nodes):
        _shorten(graph, node)
    _without_dead(graph)
    if few:
        _fused(graph, slopes)
    for name, tensor in recorder.constants.items():
        root.register_buffer(name, tensor.detach(), persistent=False)
    _lift_constants(graph, root)
    products = _factored(graph, slopes)
    for node in graph.nodes:
        node.meta = {}  # which holds tensors
    return GraphModule(root, graph), products


def _without_dead(graph: Graph) -> None:
    """Without what nobody uses; what was left out is still known to others that were, and holds no tensors."""
    before = [*graph.nodes]
    graph.eliminate_dead_code()
    for node in {*before} - {*graph.nodes}:
        node.meta = {}


def _fused(graph: Graph, slopes: int) -> None:
    """Layers with a bias: x W' + b is one operation, and the slope of b, a sum over the batch, a product with ones."""
    for node in list(graph.nodes):
        bias, product = node.args if node.target is aten.add.Tensor and not node.kwargs else (None, None)
        if isinstance(bias, Node) and isinstance(product, Node) and product.target is aten.bmm.default and len(product.users) == 1:
            rows, _, width = _shape(product)
            if _shape(bias) == (rows, 1, width) and _dtype(bias) == _dtype(product):
                with graph.inserting_before(node):
                    _replace(node, graph.call_function(aten.baddbmm.default, (bias, *product.args)))
    for node in list(cast(Any, graph.output_node().args[0])[:slopes]) if slopes else ():
        total = node.args[0] if node.target is aten.view.default else node
        if total.target is aten.sum.dim_IntList and total.args[1:] == ([1], True) and len(_shape(total)) == 3 > len(_shape(node)):
            (rows, batch, _), like = _shape(total.args[0]), total.args[0].meta["like"]
            with graph.inserting_before(node):
                ones = graph.call_function(torch.ones, ((rows, 1, batch),), {"dtype": like.dtype, "device": like.device})
                _replace(node, graph.call_function(aten.bmm.default, (ones, total.args[0])))
    _without_dead(graph)


def _factored(graph: Graph, slopes: int) -> list[bool]:
    """Leaves products among the first results as their factors; which these are."""
    if not slopes:
        return []
    output = graph.output_node()
    found = cast(Sequence[Any], output.args[0])
    products = [place < slopes and one.target is aten.bmm.default for place, one in enumerate(found)]
    output.args = (tuple(part for one, product in zip(found, products, strict=True) for part in (one.args if product else [one])),)
    _without_dead(graph)
    return products[:slopes]


def write(places: Iterable[Tensor], products: Iterable[bool], slopes: Iterable[Tensor]) -> None:
    """places <- slopes, in place; slopes as `traced` leaves them."""
    found = iter(slopes)
    for place, product in zip(places, products, strict=True):
        if product:
            torch.bmm(next(found), next(found), out=_matrices(place))
        else:
            place.copy_(next(found))


def descend(places: Iterable[Tensor], products: Iterable[bool], slopes: Iterable[Tensor], keep: float, step: float) -> None:
    """places <- keep x places + step x slopes, in place; slopes as `traced` leaves them."""
    found = iter(slopes)
    for place, product in zip(places, products, strict=True):
        if product:
            _matrices(place).baddbmm_(next(found), next(found), beta=keep, alpha=step)
        else:
            shrink(place, keep)
            place.add_(next(found), alpha=step)


def _matrices(place: Tensor) -> Tensor:
    """Of vectors, matrices of one row."""
    return place.unsqueeze(1) if place.dim() == 2 else place


def _shape(node: Any) -> Any:
    return node.meta["like"].shape


def _dtype(node: Any) -> Any:
    return node.meta["like"].dtype


def _shorten(graph: Graph, node: Node) -> None:
    """Replaces a node that changes nothing, or that a cheaper one equals."""
    target, args = node.target, cast(Any, node.args)
    if target is aten.ones_like.default:  # of the loss, which is computed only for its shape
        like = node.meta["like"]
        with graph.inserting_before(node):
            _replace(node, graph.call_function(torch.ones, (tuple(like.shape),), {"dtype": like.dtype, "device": like.device}))
    elif (target in SAME_NUMBERS and _shape(node) == _shape(args[0])) or (target is aten.mul.Scalar and args[1] == 1):
        node.replace_all_uses_with(args[0])
    elif target is aten.mul.Tensor:
        for one, other in (args, args[::-1]):
            if _ones(one) and isinstance(other, Node) and _shape(other) == _shape(node):
                node.replace_all_uses_with(other)
                break
    elif target in VIEWS and args[0].target in VIEWS and _viewed(base := args[0].args[0], node):
        with graph.inserting_before(node):
            _replace(node, graph.call_function(aten.view.default, (base, list(_shape(node)))))
    elif target is aten.permute.default and list(args[1]) == list(range(len(args[1]))):
        node.replace_all_uses_with(args[0])
    elif target is aten.clone.default and _lies_elsewhere(args[0]) and node.kwargs.get("memory_format") is torch.contiguous_format:
        with graph.inserting_before(node):  # the sum is written where it is to lie, and not copied there
            _replace(node, graph.call_function(_added, (*args[0].args, tuple(_shape(node)))))
    elif (swapped := _swapped(node)) is not None and swapped == _swapped(args[0]):
        node.replace_all_uses_with(args[0].args[0])
    elif swapped == {1, 2} and args[0].target is aten.bmm.default:  # (A B)' = B' A': slopes lie as their parameters do
        left, right = args[0].args
        with graph.inserting_before(node):
            _replace(node, graph.call_function(aten.bmm.default, (_turned(graph, right), _turned(graph, left))))
    elif target is aten.select_backward.default and args[1][args[2]] == 1:
        with graph.inserting_before(node):
            _replace(node, graph.call_function(aten.unsqueeze.default, (args[0], args[2])))


def _viewed(base: Node, node: Node) -> bool:
    """Can the base, which lies as it did when it was traced, be seen in the node's shape without a copy?"""
    try:
        return base.meta["like"].view(_shape(node)) is not None
    except RuntimeError:
        return False


def _lies_elsewhere(node: Any) -> bool:
    """Is it a plain sum of two tensors that nobody uses but as a copy?"""
    plain = node.target is aten.add.Tensor and not node.kwargs and len(node.all_input_nodes) == 2
    return plain and sum(bool(user.users) for user in node.users) == 1  # others were replaced


def _added(a: Tensor, b: Tensor, shape: Sequence[int]) -> Tensor:
    """a + b, contiguous."""
    return torch.add(a, b, out=torch.empty(shape, dtype=a.dtype, device=a.device))


def _swapped(node: Any) -> set[int] | None:
    """The two axes that a transposition swaps, None for other nodes."""
    if node.target is aten.transpose.int:
        return {axis % len(_shape(node)) for axis in node.args[1:]}
    if node.target is aten.permute.default:
        moved = {at for at, axis in enumerate(node.args[1]) if at != axis % len(node.args[1])}
        return moved if len(moved) == 2 else None
    return None


def _turned(graph: Graph, node: Node) -> Node:
    """The last two of three axes swapped."""
    if _swapped(node) == {1, 2}:
        return cast(Node, node.args[0])
    turned = graph.call_function(aten.transpose.int, (node, 1, 2))
    turned.meta = {"like": node.meta["like"].transpose(1, 2)}
    return turned


def _replace(node: Node, other: Node) -> None:
    other.meta = dict(node.meta)
    node.replace_all_uses_with(other)


def _ones(node: Any) -> bool:
    """Known to hold nothing but ones."""
    while isinstance(node, Node) and node.target in SAME_NUMBERS:
        node = node.args[0]
    return isinstance(node, Node) and node.target in (torch.ones, aten.ones.default)


def _lift_constants(graph: Graph, root: torch.nn.Module) -> None:
    """Tensors that depend on no argument are made once, if nothing writes to them."""
    known: dict[Node, Tensor] = {
        node: getattr(root, str(node.target)) for node in graph.nodes if node.op == "get_attr" and not _written(node)
    }
    for node in list(graph.nodes):
        given = node.all_input_nodes
        made = node.target in MADE if not given else _pure(node.target) and all(one in known for one in given)
        if node.op != "call_function" or not made or _written(node):
            continue
        value = node.target(*map_arg(node.args, known.get), **map_arg(node.kwargs, known.get))
        root.register_buffer(f"constant_{node.name}", value, persistent=False)
        with graph.inserting_before(node):
            constant = graph.get_attr(f"constant_{node.name}")
        known[constant] = value
        _replace(node, constant)
        graph.erase_node(node)
    _without_dead(graph)


def _pure(target: Any) -> bool:
    """An operation that writes to nothing, draws nothing and has one result."""
    if not isinstance(target, torch._ops.OpOverload) or torch.Tag.nondeterministic_seeded in target.tags:
        return False
    return not target._schema.is_mutable and [str(one.type) for one in target._schema.returns] == ["Tensor"]


def _written(node: Node) -> bool:
    """Does an operation write to the node's numbers, or to a view of them?"""
    targets = [(user, user.target) for user in node.users if isinstance(user.target, torch._ops.OpOverload)]
    return any(target._schema.is_mutable or (target.is_view and _written(user)) for user, target in targets)
