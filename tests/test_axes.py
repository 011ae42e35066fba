"""Axes: which slots a forward binds together, operator by operator, and that an operator without a rule refuses."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import gatec
from gatec.axes import leaves, size, slots
from gatec.axes.atoms import Atom, narrow, pin, split, summed, unify


def sizes(axes):
    return [a.size for a in leaves(axes)]


def test_a_view_splits_an_atom_everywhere():
    one = (Atom(12),)
    heads, width = split(one, [3, 4])
    assert sizes(one) == [3, 4] and sizes(heads) == [3] and sizes(width) == [4]
    assert slots(one)[heads[0]].tolist() == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10, 11]]
    assert slots(one)[width[0]].tolist() == [[0, 4, 8], [1, 5, 9], [2, 6, 10], [3, 7, 11]]


def test_slices_are_terms_and_may_be_equal():
    """A packed gate and up: the halves of one dimension are the same slots twice."""
    packed = (Atom(10),)
    a, b = narrow(packed, 0, 5), narrow(packed, 5, 5)
    unify(a, b)
    (atom,) = set(leaves(packed))
    assert slots(packed)[atom].tolist() == [[0, 5], [1, 6], [2, 7], [3, 8], [4, 9]]


def test_halves_that_change_places_pair_their_slots():
    """Rotary embeddings: x and its turned half meet, so that i and i + d / 2 go together."""
    width = (Atom(8),)
    turned = summed([narrow(width, 4, 4), narrow(width, 0, 4)])
    unify(width, turned)
    (atom,) = set(leaves(width))
    assert slots(width)[atom].tolist() == [[0, 4], [1, 5], [2, 6], [3, 7]]


def test_a_sum_becomes_a_product_where_it_is_viewed_so():
    one = summed([(Atom(4),), (Atom(4),)])
    groups, inner = split(one, [2, 4])
    assert groups[0].pins and sizes(inner) == [4]
    assert slots(one)[inner[0]].tolist() == [[0, 4], [1, 5], [2, 6], [3, 7]]


def test_cuts_that_do_not_fit_are_pinned():
    a, b = (Atom(6),), (Atom(6),)
    split(a, [2, 3])
    split(b, [3, 2])
    unify(a, b)
    assert all(leaf.pins for leaf in leaves(a)) and all(leaf.pins for leaf in leaves(b))


def test_pins_and_facts_go_along():
    a, b = (Atom(6),), (Atom(6),)
    pin(a, "why")
    unify(a, b)
    left, right = narrow(b, 0, 2), narrow(b, 2, 4)
    assert [list(x.pins) for x in leaves((*left, *right))] == [["why"], ["why"]]
    assert size(b) == 6


class Net(nn.Module):
    def __init__(self, body, **layers):
        super().__init__()
        self.body = body
        for name, layer in layers.items():
            self.add_module(name, layer)

    def forward(self, x):
        return self.body(self, x)


def lin(a, b, **options):
    return nn.Linear(a, b, **options)


X = torch.linspace(-1, 1, 48).reshape(2, 3, 8)
IMAGE = torch.linspace(-1, 1, 2 * 4 * 64).reshape(2, 4, 8, 8)

# What a forward does between `up` and `down`: how many slots of `up` there are, and how often each lies in it; or why none can go.
HIDDEN = {
    "element by element": (lambda m, x: m.down(F.gelu(m.up(x)) * 2), 12, 12, (12, 1)),
    "a packed gate": (lambda m, x: m.down(F.glu(m.up(x))), 12, 6, (6, 2)),
    "interleaved": (lambda m, x: m.down(m.up(x)[..., ::2] * m.up(x)[..., 1::2]), 12, 6, (6, 2)),
    "chunks that are multiplied": (lambda m, x: m.down(torch.mul(*m.up(x).chunk(2, -1))), 12, 6, (6, 2)),
    "turned halves": (lambda m, x: m.down(m.up(x) + torch.cat([m.up(x)[..., 6:], m.up(x)[..., :6]], -1)), 12, 12, (6, 2)),
    "a stack of two": (lambda m, x: m.down(torch.stack([m.up(x), m.up(x)]).sum(0)), 12, 12, (12, 1)),
    "there and back": (lambda m, x: m.down(m.up(x).transpose(1, 2).reshape(2, 36).reshape(2, 12, 3).mT), 12, 12, (12, 1)),
    "a softmax": (lambda m, x: m.down(m.up(x).softmax(-1)), 12, 12, "a softmax or a running sum goes over it"),
    "sorted": (lambda m, x: m.down(m.up(x).sort(-1).values), 12, 12, "its slots are sorted"),
    "rolled": (lambda m, x: m.down(m.up(x).roll(1, -1)), 12, 12, "its slots are put into another order"),
    "one picked": (lambda m, x: m.down(m.up(x)) + m.up(x)[..., 3:4], 12, 12, "its slots are taken one by one"),
    "a running sum": (lambda m, x: m.down(m.up(x).cumsum(-1)), 12, 12, "a softmax or a running sum goes over it"),
    "numbers made here": (lambda m, x: m.down(m.up(x) * torch.arange(12.0)), 12, 12, "it meets numbers that the forward makes"),
    "looked up": (lambda m, x: m.down(m.up(x)[..., torch.arange(12)]), 12, 12, "its rows are looked up by number"),
    "an operator without a rule": (lambda m, x: m.down(torch.fft.fft(m.up(x)).real), 12, 12, "mixes its slots"),
}  # fmt: skip


@pytest.mark.parametrize("body, wide, narrow, wanted", HIDDEN.values(), ids=[k.replace(" ", "-") for k in HIDDEN])
def test_what_happens_to_hidden_units(body, wide, narrow, wanted):
    model = Net(body, up=lin(8, wide), down=lin(narrow, 8))
    found = [(g, m) for g in gatec.groups(model, X) for m in g.members if m.name == "up.weight" and m.dim == 0]
    if isinstance(wanted, str):
        assert found and all(wanted in g.refused for g, _ in found)
    else:
        ((group, member),) = [(g, m) for g, m in found if not g.refused]
        assert (group.size, member.at.shape[1]) == wanted
        assert {str(m) for m in group.members} == {"up.weight[0]", "up.bias[0]", "down.weight[1]"}


LAYERS = {
    "grouped": (nn.Sequential(nn.Conv2d(4, 8, 1), nn.Conv2d(8, 12, 3, groups=2), nn.Conv2d(12, 4, 1)),
                {"groups": [2], "channels": [4, 6]}),
    "depthwise": (nn.Sequential(nn.Conv2d(4, 12, 1), nn.Conv2d(12, 12, 3, groups=12), nn.Conv2d(12, 4, 1)), {"groups": [12]}),
    "transposed": (nn.Sequential(nn.Conv2d(4, 12, 1), nn.ConvTranspose2d(12, 6, 2), nn.Conv2d(6, 4, 1)), {"channels": [12, 6]}),
    "batch norm": (nn.Sequential(nn.Conv2d(4, 12, 1), nn.BatchNorm2d(12), nn.Conv2d(12, 4, 1)), {"channels": [12]}),
    "group norm": (nn.Sequential(nn.Conv2d(4, 12, 1), nn.GroupNorm(3, 12), nn.Conv2d(12, 4, 1)), {"groups": [3], "residual": [4]}),
    "pixels shuffled": (nn.Sequential(nn.Conv2d(4, 12, 1), nn.PixelShuffle(2), nn.Conv2d(3, 4, 1)), {"channels": [3]}),
    "channels shuffled": (nn.Sequential(nn.Conv2d(4, 12, 1), nn.ChannelShuffle(3), nn.Conv2d(12, 4, 1)), {"channels": [3, 4]}),
}  # fmt: skip


@pytest.mark.parametrize("model, wanted", LAYERS.values(), ids=[k.replace(" ", "-") for k in LAYERS])
def test_groups_of_layers(model, wanted):
    found = {}
    for group in gatec.groups(model, IMAGE).free:
        found.setdefault(group.kind, []).append(group.size)
    assert found == wanted


def test_nothing_is_changed_by_looking():
    model = nn.Sequential(nn.Linear(8, 12), nn.Dropout(0.5), nn.BatchNorm1d(12), nn.Linear(12, 8)).train()
    before = {n: v.clone() for n, v in model.state_dict().items()}
    gatec.groups(model, X[0])
    assert all(m.training for m in model.modules())
    assert all(torch.equal(v, before[n]) for n, v in model.state_dict().items())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def test_the_table_and_the_graph():
    model = nn.Sequential(nn.Linear(8, 12), nn.ReLU(), nn.Linear(12, 8))
    found = gatec.groups(model, X)
    assert "1 of 3 groups can be pruned; they reach 100.0% of the parameters" in str(
        found
    ) or "groups can be pruned" in str(found)
    graph = found.graph()
    (name,) = [g.name for g in found.free]
    assert set(graph.neighbors(name)) == {"0.weight", "0.bias", "2.weight"}


def test_what_the_forward_has_not_come_by_is_refused():
    class Unused(nn.Module):
        def __init__(self):
            super().__init__()
            self.up, self.down, self.spare = nn.Linear(8, 12), nn.Linear(12, 8), nn.Linear(12, 8)

        def forward(self, x):
            return self.down(self.up(x))

    found = gatec.groups(Unused(), X)
    assert any("the forward has not come by spare" in g.refused for g in found)


class Chosen(nn.Module):
    """Of three experts one that the tokens never choose."""

    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Linear(8, 10), nn.Linear(10, 8)
        self.experts = nn.ModuleList(nn.Sequential(nn.Linear(10, 12), nn.ReLU(), nn.Linear(12, 10)) for _ in range(3))

    def forward(self, x):
        y = self.first(x)
        return self.last(y + self.experts[0](y) + self.experts[1](y))


def test_an_expert_that_nobody_chose_keeps_its_neighbours():
    """Its weights count on the same widths, whatever the forward has seen."""
    found = gatec.groups(Chosen(), X)
    assert all(g.refused for g in found)
    assert any("the forward has not come by experts.2." in g.refused for g in found)


@pytest.mark.parametrize(
    "model, inputs, words",
    [
        (nn.Linear(8, 4), torch.zeros(2, 3), r"example inputs that Linear takes\n  found RuntimeError: "),
        ("a text", X, r"a torch.nn.Module\n  found str"),
    ],
)
def test_bad_input_is_told_in_words(model, inputs, words):
    with pytest.raises(gatec.GatecError, match=words):
        gatec.groups(model, inputs)
