"""Modules that call modules: several times, shared, in lists, by name."""

import copy
import functools

import torch
from torch import nn
from torch.nn import functional as F

from odd import Block, X, after, call, odd, rows


class Plain(Block):
    def forward(self, x):
        return self.mlp(x)


class Scaled(Block):
    def forward(self, x, scale=1, mask=None):
        y = self.mlp(x) * scale
        return y if mask is None else y * mask


@odd(X, others=[rows(3), rows(2, 2)])
class SeveralTimes(nn.Module):
    def __init__(self):
        super().__init__()
        self.block, self.head = Plain(), nn.Linear(8, 8)

    def forward(self, x):
        for _ in range(3):
            x = self.head(self.block(x)) + self.block(x[:1])
        return x


@odd(X, others=[rows(3)])
class DifferentArguments(nn.Module):
    def __init__(self):
        super().__init__()
        self.block = Scaled()

    def forward(self, x):
        return self.block(x) + self.block(x, 2) + self.block(x, mask=x > 0) + self.block(x[None], scale=0.5)[0]


@odd(X, others=[rows(3)])
class SharedModule(nn.Module):
    def __init__(self):
        super().__init__()
        self.a = self.b = Plain()
        self.inner = nn.ModuleDict({"same": self.a, "other": copy.deepcopy(self.a)})

    def forward(self, x):
        return self.a(x) + self.b(x * 2) + self.inner["same"](x) * self.inner["other"](x)


@odd(torch.arange(6).view(2, 3), others=[torch.arange(4).view(1, 4)])
class TiedWeights(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed, self.head = nn.Embedding(10, 8), nn.Linear(8, 10, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, ids):
        x = self.embed(ids)
        return self.head(x) + F.linear(x, self.embed.weight)


@odd(X, others=[rows(3), call(X, "b"), call(X, "none")])
class ModuleDicts(nn.Module):
    def __init__(self):
        super().__init__()
        self.named = nn.ModuleDict({"a": Plain(), "b": nn.Linear(8, 8), "act": nn.GELU()})

    def forward(self, x, which="a"):
        if which in self.named:
            x = self.named[which](x)
        for name, module in self.named.items():
            x = module(x) if name != "b" else x
        return x * len(self.named) + sum(m(x).mean() for m in self.named.values())


@odd(X, others=[rows(3), call(X, 2), call(X, 0)])
class ModuleLists(nn.Module):
    def __init__(self):
        super().__init__()
        self.blocks = nn.ModuleList(Plain() for _ in range(4))
        self.norms = nn.ModuleList(nn.LayerNorm(8) for _ in range(4))

    def forward(self, x, depth=3):
        for block, norm in zip(self.blocks, self.norms, strict=True):
            x = x + block(norm(x))
        for i, block in enumerate(self.blocks[:depth]):
            x = x + block(x) * i
        for block in reversed(self.blocks):
            x = block(x)
        return self.blocks[-1](x) + self.blocks[1:3][0](x) + len(self.blocks)


@odd(X, others=[rows(3)])
class SequentialIndexing(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8), nn.Tanh())

    def forward(self, x):
        y = self.layers[0](x) + self.layers[-1](x) + self.layers[:2](x)
        for layer in self.layers:
            y = layer(y)
        return self.layers(y), self.layers[2:](y)


@odd(X, others=[rows(3)])
class NestedSequential(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Sequential(nn.Linear(8, 8), nn.Sequential()), nn.Sequential(Plain(), nn.Identity()))

    def forward(self, x):
        return self.net(x)


@odd(X, others=[rows(3)])
class PlainList(nn.Module):
    """Modules in a plain list are no children: they have no names, and no one finds their parameters."""

    def __init__(self):
        super().__init__()
        self.layers = [[nn.Linear(8, 8), Plain()], (nn.LayerNorm(8),)]
        self.own = nn.Linear(8, 8)

    def forward(self, x):
        for group in self.layers:
            for layer in group:
                x = layer(x)
        return self.own(x)


@odd(X, others=[rows(3)])
class ListOfChildren(nn.Module):
    """A plain list of modules that are also children by name, as old code does with add_module."""

    def __init__(self):
        super().__init__()
        self.layers = []
        for i in range(3):
            self.add_module(f"layer{i}", Plain())
            self.layers.append(getattr(self, f"layer{i}"))
        self.order = {"first": self.layers[0], "last": self.layers[-1]}

    def forward(self, x):
        for layer in self.layers:
            x = layer(x)
        return self.order["last"](x) + getattr(self, "layer1")(x)  # noqa: B009


@odd(X, others=[rows(3)])
class ByName(nn.Module):
    def __init__(self):
        super().__init__()
        for i in range(3):
            setattr(self, f"conv{i}", nn.Linear(8, 8))
        self.steps = ("conv0", "conv2")

    def forward(self, x):
        for name in self.steps:
            x = getattr(self, name)(x)
        return x + self.get_submodule("conv1")(x) + self._modules["conv1"](x)


@odd(X, others=[rows(3)])
class OverChildren(Block):
    def forward(self, x):
        for name, child in self.named_children():
            x = child(x) if name else x
        for p in self.parameters():
            x = x + p.sum()
        return x * len(list(self.modules())) + sum(b.sum() for b in self.buffers())


@odd(X, others=[rows(3)])
class ReachesIn(nn.Module):
    """Reads the weights of a grandchild instead of calling it."""

    def __init__(self):
        super().__init__()
        self.block = Plain()
        self.scale = nn.ParameterList([nn.Parameter(torch.ones(8)), nn.Parameter(torch.zeros(8))])
        self.named = nn.ParameterDict({"a": nn.Parameter(torch.ones(8))})

    def forward(self, x):
        hidden = F.linear(x, self.block.up.weight, self.block.up.bias)
        y = self.block.mlp(x) + self.block.down(hidden)
        return y * self.scale[0] + self.scale[1] + self.named["a"] * len(self.scale)


@odd(X, others=[rows(3)])
class CallsForward(nn.Module):
    """.forward instead of a call: no hooks, and gatec must not add any."""

    def __init__(self):
        super().__init__()
        self.block, self.linear = Plain(), nn.Linear(8, 8)

    def forward(self, x):
        return self.block.forward(x) + self.linear.forward(x) + nn.Linear.forward(self.linear, x)


@odd(X, others=[rows(3)])
class MadeInForward(Block):
    def forward(self, x):
        act = nn.GELU(approximate="tanh")
        return nn.Sequential(act, self.down)(self.up(x)) + nn.Softmax(dim=-1)(x) + nn.CosineSimilarity()(x, x)[:, None]


@odd(
    X,
    others=[
        rows(3),
        after(lambda m: m.blocks.append(Plain()), X),
        after(lambda m: setattr(m, "blocks", m.blocks[:1]), X),
    ],
)
class GrowsLater(nn.Module):
    def __init__(self):
        super().__init__()
        self.blocks = nn.ModuleList([Plain(), Plain()])

    def forward(self, x):
        for block in self.blocks:
            x = block(x)
        return x


def swapped(model):
    model.block = nn.Linear(8, 8)
    nn.init.ones_(model.block.weight)


@odd(X, others=[rows(3), after(swapped, X)])
class ChildSwappedLater(nn.Module):
    def __init__(self):
        super().__init__()
        self.block = Plain()

    def forward(self, x):
        return self.block(x) * 2


def doubled(model):
    model.up.weight = nn.Parameter(model.up.weight.detach() * 2)
    with torch.no_grad():
        model.down.weight.mul_(2)


@odd(
    X,
    others=[
        after(doubled, X),
        after(lambda m: setattr(m.down, "bias", None), X),
        after(lambda m: m.double(), X.double()),
    ],
)
class WeightsReplacedLater(Block):
    def forward(self, x):
        return self.mlp(x) + F.linear(x, self.up.weight.T[:, :8] if self.up.bias is None else self.up.weight[:8])


@odd(X, others=[rows(3)])
class PartialAndLambda(Block):
    def __init__(self):
        super().__init__()
        self.act = functools.partial(F.gelu, approximate="tanh")
        self.post = lambda x: x * 2 + self.down.bias
        self.pool = functools.partial(self.pooled, dim=-1)
        self.table = {"relu": F.relu, "silu": torch.nn.functional.silu}

    def pooled(self, x, dim):
        return x.mean(dim, keepdim=True)

    def forward(self, x):
        return self.post(self.down(self.act(self.up(x)))) + self.pool(x) + self.table["silu"](x)


@odd(X, others=[rows(3)])
class ResidualFn(nn.Module):
    """`fn` is a module: x + fn(norm(x)), the way many write their blocks."""

    def __init__(self):
        super().__init__()
        self.fn, self.norm = nn.Sequential(nn.Linear(8, 8), nn.GELU()), nn.LayerNorm(8)

    def forward(self, x, **kwargs):
        return self.fn(self.norm(x), **kwargs) + x


@odd(X, others=[rows(3)])
class Reduces(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(8, 8) for _ in range(3))

    def forward(self, x):
        y = functools.reduce(lambda h, layer: layer(h), self.layers, x)
        return y + sum(map(lambda layer: layer(x), self.layers)) + torch.stack([m(x) for m in self.layers]).sum(0)  # noqa: C417


class Leaf(nn.Module):
    def forward(self, x):
        return x.sin()


@odd(X, others=[rows(3)])
class OneParentTwoPaths(nn.Module):
    def __init__(self):
        super().__init__()
        leaf = Leaf()
        self.a, self.b = nn.Sequential(leaf, nn.Linear(8, 8)), nn.Sequential(nn.Linear(8, 8), leaf)

    def forward(self, x):
        return self.b(self.a(x))


@odd(X, others=[rows(3)])
class EmptyContainers(nn.Module):
    def __init__(self):
        super().__init__()
        self.none, self.list, self.seq = nn.ModuleDict(), nn.ModuleList(), nn.Sequential()

    def forward(self, x):
        for m in self.list:
            x = m(x)
        return self.seq(x) if not self.none else x
