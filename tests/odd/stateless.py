"""Children called with other tensors where their parameters stand: torch.func.functional_call."""

import torch
from torch import nn
from torch.func import functional_call

from odd import Block, X, odd, rows


@odd(X, others=[rows(3)])
class ComputedWeights(Block):
    """The same child called with its own weights and with others; further parameters stay its own."""

    def forward(self, x):
        scaled = {name: 0.5 * p.tanh() for name, p in self.up.named_parameters()}
        return self.down(functional_call(self.up, scaled, (x,)) + self.up(x)) + functional_call(
            self.down, {"weight": self.down.weight.flip(0)}, self.up(x)
        )


@odd(X, others=[rows(3)])
class NestedChild(Block):
    """By dotted names, through containers, an activation and a norm with buffers; two dictionaries."""

    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(8, 8), nn.Sequential(nn.ReLU(), nn.BatchNorm1d(8)), nn.Linear(8, 8))
        self.scale = nn.Parameter(torch.ones(3))

    def forward(self, x):
        first = {"0.weight": self.net[0].weight * self.scale[0], "1.1.weight": self.net[1][1].weight * self.scale[1]}
        second = {"1.1.running_mean": self.net[1][1].running_mean + self.scale[2].detach()}
        return functional_call(self.net, (first, second), (self.mlp(x),))


@odd(X, others=[rows(3)])
class OneWithinAnother(Block):
    """A child that itself calls its child with other weights."""

    def __init__(self):
        super().__init__()
        self.inner = ComputedWeights()

    def forward(self, x):
        return functional_call(self.inner, {"down.bias": self.inner.down.bias + 1}, (x,)) + self.mlp(x)


@odd(X, others=[rows(3)])
class TiedWeights(Block):
    """One name of a tied weight stands for all of them."""

    def __init__(self):
        super().__init__()
        self.pair = nn.Sequential(nn.Linear(8, 8, bias=False), nn.Linear(8, 8, bias=False))
        self.pair[1].weight = self.pair[0].weight

    def forward(self, x):
        return functional_call(self.pair, {"0.weight": self.pair[0].weight.T}, self.mlp(x))


@odd(X, others=[rows(3)], refused="it calls functional_call with names that its module has not")
class UnknownName(Block):
    def forward(self, x):
        return functional_call(self.up, {"gain": self.up.weight}, x)  # refused
