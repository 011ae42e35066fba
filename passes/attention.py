"""Gated attention: a sigmoid gate on what attention returns, before its output projection.

    before    y = out(attend(x))
    after     y = out(attend(x) * 2 sigmoid(gate(x))),    elementwise, or one number per head

Born neutral: gate's weight and bias are zero, where the factor is one. The gate reads what the queries are projected from;
with `source="projection"`, or where no graph holds both, it reads what goes into the projection, and is put at the
boundary of the projection alone.
Gated Attention for Large Language Models, Qiu et al. 2025, https://arxiv.org/abs/2505.06708
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gatec import Case, Gate, GatecError, equation, places

SOURCES, PER = ("input", "projection"), ("element", "head")


@equation
def attention(y: Tensor, gate: Tensor) -> Tensor:
    return y * (2 * torch.sigmoid(gate))


def check(site, out, attend=None, *, source: str = "input", per: str = "element") -> None:
    for name, value, known in (("source", source, SOURCES), ("per", per, PER)):
        if value not in known:
            raise GatecError(f"a {name} that attention knows", found=repr(value), hint=f"one of {', '.join(known)}")
    if attend is not None and source == "projection":
        site.refuse("its gate was asked to read what goes into the projection")
    if per == "head" and out.heads is None:
        site.refuse("its values do not show how many heads it has")
    if attend is None:
        site.note("its gate reads what goes into the projection")


def after(site, here, out, x=None, *, per: str = "element"):
    x = here if x is None else x

    def ones() -> nn.Linear:
        site.same_rows(x, here)
        return one(site.shape(x)[-1], out.heads if per == "head" else site.shape(here)[-1], site.like(out))

    logits = site.add("gate", ones, near=out)(x)
    if per == "element":
        return attention(here, logits)
    return attention(here.unflatten(-1, (out.heads, -1)), logits.unsqueeze(-1)).flatten(-2)


def merge(site, out, *, per: str = "element") -> None:
    gate = site.added_value("gate")
    if gate.weight.any():
        site.refuse("its gate depends on the input")
    factor = 2 * torch.sigmoid(gate.bias)
    site.scale_inputs("out", factor.repeat_interleave(out.module.in_features // out.heads) if per == "head" else factor)


def one(width: int, gates: int, like) -> nn.Linear:
    """A linear layer under whose sigmoid every gate is a half."""
    gate = nn.utils.skip_init(nn.Linear, width, gates, **like)
    nn.init.zeros_(gate.weight)
    nn.init.zeros_(gate.bias)
    return gate


class Attention(nn.Module):
    def __init__(self, eager: bool = False, heads: int = 2) -> None:
        super().__init__()
        self.eager, self.heads = eager, heads
        self.qkv, self.out = nn.Linear(8, 24), nn.Linear(8, 8)

    def forward(self, x):
        q, k, v = self.qkv(x).unflatten(-1, (3, self.heads, -1)).transpose(-2, -4).unbind(-3)
        y = torch.softmax(q @ k.mT / 2, -1) @ v if self.eager else F.scaled_dot_product_attention(q, k, v)
        return self.out(y.transpose(-2, -3).flatten(-2))


class Cross(nn.Module):
    """Queries from one value, keys and values from another, one head."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v, self.output = (nn.Linear(8, 8) for _ in range(4))

    def forward(self, x):
        memory = x.flip(-1)
        return x + self.output(torch.softmax(self.q(x) @ self.k(memory).mT, -1) @ self.v(memory))


class ReadTwice(Cross):
    def forward(self, x):
        y = torch.softmax(self.q(x) @ self.k(x).mT, -1) @ self.v(x)
        return self.output(y) + y


X = (torch.linspace(-2, 2, 32).reshape(4, 8),)
GATE = Gate(
    before=(places.attended, places.projected), after=after, check=check, equation=attention, merge=merge,
    cases=(
        Case("fused", Attention, X),
        Case("eager", lambda: Attention(eager=True), X),
        Case("cross", Cross, X),
        Case("per head", Attention, X, options={"per": "head"}),
        Case("at the boundary", lambda: nn.Sequential(Attention(), Attention()), X, put=2, options={"source": "projection"}),
        Case("per head at the boundary", Attention, X, options={"source": "projection", "per": "head"}),
        Case("read twice", ReadTwice, X, refuses="is also read by add"),
        Case("unknown source", Attention, X, refuses="a source that attention knows", options={"source": "moon"}),
        Case("heads not to be seen", Cross, X, refuses="its values do not show how many heads it has", options={"per": "head"}),
        Case("nor at the boundary", Cross, X, refuses="its gate was asked to read what goes into the projection",
             options={"per": "head", "source": "projection"}),
    ),
)  # fmt: skip
