"""Feature gate: a learned scale on every output feature of a linear layer or a convolution.

    before    y = layer(x)
    after     y = layer(x) * s,    s = 1 + w  |  sigmoid(g) / sigmoid(g0),  one per feature

Born neutral: w = 0, or g = g0 = 0, where the quotient is one. It goes to every layer that the user chooses with `only=`.
Hard-Attention Gates, Roffo et al. 2024, https://arxiv.org/abs/2407.04400
"""

import torch
from torch import Tensor, nn

from gatec import Case, Gate, GatecError, equation, places

FORMS = {"sigmoid": lambda g: 2 * torch.sigmoid(g), "one-plus": lambda w: 1 + w}


@equation
def wrap(y: Tensor, gate: Tensor) -> Tensor:
    return y * (2 * torch.sigmoid(gate))


def check(site, layer, *, form: str = "sigmoid") -> None:
    if form not in FORMS:
        raise GatecError("a form that wrap knows", found=repr(form), hint=f"one of {', '.join(FORMS)}")


def after(site, here, layer, *, form: str = "sigmoid"):
    def zeros() -> nn.Parameter:
        return nn.Parameter(torch.zeros(site.channels(here, layer), **site.like(layer)))

    return here * FORMS[form](site.add("feature_gate", zeros, near=layer))


def merge(site, *, form: str = "sigmoid") -> None:
    site.scale_outputs("layer", FORMS[form](site.added_value("feature_gate")))


class Convolution(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv1d(8, 6, 3, padding=1)

    def forward(self, x):
        return self.conv(x.flatten(0, -2).unsqueeze(-1)).squeeze(-1).unflatten(0, x.shape[:-1])


class Twice(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(8, 8)

    def forward(self, x):
        return self.layer(self.layer(x))


class Functional(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.linspace(-1, 1, 48).reshape(6, 8))

    def forward(self, x):
        return torch.nn.functional.linear(x, self.table)


X = (torch.linspace(-2, 2, 32).reshape(4, 8),)
GATE = Gate(
    before=(places.linear, places.convolution), after=after, check=check, equation=wrap, merge=merge,
    cases=(
        Case("every layer", lambda: nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 8)), X, put=2),
        Case("one-plus", lambda: nn.Sequential(nn.Linear(8, 8)), X, options={"form": "one-plus"}),
        Case("convolution", Convolution, X),
        Case("a weight alone", Functional, X),
        Case("one layer in two places", Twice, X, refuses="is called 2 times in one forward"),
        Case("unknown form", Convolution, X, refuses="a form that wrap knows", options={"form": "sine"}),
    ),
)  # fmt: skip
