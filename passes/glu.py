"""GLU swap: let a second projection of its input gate the hidden layer of an MLP.

    before    y = down(act(up(x)))
    after     y = down(act(up(x)) * value(x))

Born neutral: `value` starts as the constant one (V = 0, c = 1), so that y moves only once it is trained.
The five variants are the five activations: GLU (sigmoid), Bilinear (none), ReGLU (relu), GEGLU (gelu), SwiGLU (silu).
Shazeer 2020, https://arxiv.org/abs/2002.05202
"""

import torch
from torch import Tensor, nn

from gatec import Activation, Case, Gate, Linear, equation, here, places

VARIANTS = {"swiglu": ("silu", "swish"), "geglu": ("gelu", "gelu_tanh"), "reglu": ("relu",), "glu": ("sigmoid",)}


@equation
def glu(gate: Tensor, value: Tensor, act: Activation) -> Tensor:
    return act(gate) * value


def bilinear_hidden(x: Tensor, up: Linear, down: Linear):
    return down(here(up(x)))


def check(site, up, act=None, gate=None, *, variant: str = "auto") -> None:
    if gate is not None:
        site.refuse("its hidden layer is gated already")
    known = [*VARIANTS, "bilinear", "auto"]
    if variant not in known:
        site.refuse(f"unknown variant {variant!r}, one of {', '.join(known)}")
    if act is None and variant != "bilinear":
        site.refuse("two linear layers in a row: only variant='bilinear' goes there")
    if act is not None and variant == "bilinear":
        site.refuse(f"its activation is {act}: a bilinear layer has none")
    if act is not None and variant != "auto" and act.name not in VARIANTS[variant]:
        site.refuse(f"its activation is {act}: {variant} would not be neutral here, try variant='auto'")


def after(site, here, x, up, act=None):
    return here * site.add("value", lambda: one(up, site.like(up)), near=up)(x)


def merge(site) -> None:
    value = site.added_value("value")
    if value.weight.any():
        site.refuse("its gate depends on the input")
    site.scale_inputs("down", value.bias)


def one(up, like) -> nn.Linear:
    """The constant one as a linear layer of x."""
    value = nn.utils.skip_init(nn.Linear, up.in_features, up.out_features, **like)
    nn.init.zeros_(value.weight)
    nn.init.ones_(value.bias)
    return value


def mlp(act: nn.Module) -> nn.Sequential:
    return nn.Sequential(nn.Linear(8, 16), act, nn.Linear(16, 8))


class ReadTwice(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up, self.act, self.down = mlp(nn.ReLU())

    def forward(self, x):
        hidden = self.act(self.up(x))
        return self.down(hidden) + hidden.mean()


class Gated(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up, self.gate, self.down = nn.Linear(8, 16), nn.Linear(8, 16), nn.Linear(16, 8)

    def forward(self, x):
        return self.down(self.up(x) * nn.functional.silu(self.gate(x)))


X = (torch.linspace(-2, 2, 32).reshape(4, 8),)
GATE = Gate(
    before=(places.dense_hidden, bilinear_hidden, places.gated_hidden), after=after, check=check, equation=glu, merge=merge,
    cases=(
        Case("SiLU", lambda: mlp(nn.SiLU()), X, options={"variant": "swiglu"}),
        Case("GELU", lambda: mlp(nn.GELU()), X, options={"variant": "geglu"}),
        Case("ReLU", lambda: mlp(nn.ReLU()), X, options={"variant": "reglu"}),
        Case("Sigmoid", lambda: mlp(nn.Sigmoid()), X, options={"variant": "glu"}),
        Case("bilinear", lambda: nn.Sequential(nn.Linear(8, 16), nn.Linear(16, 8)), X, options={"variant": "bilinear"}),
        Case("two in a row", lambda: nn.Sequential(mlp(nn.ReLU()), mlp(nn.SiLU())), X, put=2),
        Case("hidden layer read twice", ReadTwice, X, refuses="also read by"),
        Case("another activation", lambda: mlp(nn.Tanh()), X, refuses="would not be neutral here",
             options={"variant": "swiglu"}),
        Case("no activation", lambda: nn.Sequential(nn.Linear(8, 16), nn.Linear(16, 8)), X,
             refuses="two linear layers in a row"),
        Case("bilinear wanted", lambda: mlp(nn.ReLU()), X, refuses="a bilinear layer has none",
             options={"variant": "bilinear"}),
        Case("gated already", Gated, X, refuses="its hidden layer is gated already"),
        Case("unknown variant", lambda: mlp(nn.ReLU()), X, refuses="unknown variant",
             options={"variant": "megaglu"}),
    ),
)  # fmt: skip
