import torch
from torch import nn
from torch.func import vmap

from fedsim.base.rows import Layout, norm


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(2, 3), nn.Linear(2, 3)
        self.second.weight = self.first.weight
        self.second.bias.requires_grad = False
        self.scale = nn.Parameter(torch.tensor(2.0))


def test_layout_has_trainable_parameters_once_in_their_order():
    layout = Layout.of(Tied())
    assert layout.names == ("scale", "first.weight", "first.bias")
    assert layout.size == 1 + 6 + 3
    assert layout.slices["first.weight"] == slice(1, 7)
    assert layout.shapes["first.weight"] == (3, 2)


def test_join_undoes_views_for_any_leading_axes():
    layout = Layout({"a": (2, 3), "b": (), "c": (4,)})
    for x in (torch.arange(11.0), torch.arange(33.0).view(3, 11), torch.arange(66.0).view(3, 2, 11), torch.empty(0, 11)):
        views = layout.views(x)
        assert views["a"].shape == (*x.shape[:-1], 2, 3)
        assert torch.equal(layout.join(views), x)
        out = torch.empty_like(x)
        assert layout.join(views, out=out) is out
        assert torch.equal(out, x)


def test_views_write_through_also_into_parts_of_a_matrix():
    layout, x = Layout({"a": (2, 2), "b": (1,)}), torch.zeros(3, 10)
    layout.views(x[:2, ::2])["a"][1] = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    assert x[1].tolist() == [1, 0, 2, 0, 3, 0, 4, 0, 0, 0]


def test_views_inside_vmap():
    layout, x = Layout({"a": (2, 2), "b": (1,)}), torch.arange(10.0).view(2, 5)
    total = vmap(lambda row: layout.views(row)["a"].sum() * layout.views(row)["b"][0])(x)
    assert total.tolist() == [6 * 4, (5 + 6 + 7 + 8) * 9]


def test_norm_is_the_length_of_each_row():
    assert norm(torch.tensor([[3.0, 4.0], [0.0, 0.0]])).tolist() == [[5.0], [0.0]]
