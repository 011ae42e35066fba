"""Residual gate: a learned scale on every residual branch.

    before    y = x + branch(x)
    after     y = x + s * branch(x),    s = 1 + w  |  2 sigmoid(w)  |  tanh(w),  one per branch or per channel

Born neutral with w = 0 in the first two forms. `form="tanh"` starts every branch at zero instead: deep residual stacks
train from there, but the model on the day is not the model before, and the report says so.
ReZero, Bachlechner et al. 2020, https://arxiv.org/abs/2003.04887; SkipInit, De and Smith 2020,
https://arxiv.org/abs/2002.10444; LayerScale, Touvron et al. 2021, https://arxiv.org/abs/2103.17239
"""

import torch
from torch import Tensor, nn

from gatec import Case, Gate, GatecError, equation, places

FORMS = {"one-plus": lambda w: 1 + w, "sigmoid": lambda w: 2 * torch.sigmoid(w), "tanh": torch.tanh}
SCALES = ("scalar", "channel")


@equation
def residual(x: Tensor, branch: Tensor, weight: Tensor) -> Tensor:
    return x + branch * (1 + weight)


def check(site, branch, *, form: str = "one-plus", scale: str = "scalar") -> None:
    for name, value, known in (("form", form, FORMS), ("scale", scale, SCALES)):
        if value not in known:
            raise GatecError(f"a {name} that residual knows", found=repr(value), hint=f"one of {', '.join(known)}")


def after(site, here, branch, *, form: str = "one-plus", scale: str = "scalar"):
    def zeros() -> nn.Parameter:
        return nn.Parameter(torch.zeros(site.channels(here, branch) if scale == "channel" else (), **site.like(branch)))

    return here * FORMS[form](site.add("scale", zeros, near=branch))


def merge(site, *, form: str = "one-plus") -> None:
    site.scale_outputs("branch", FORMS[form](site.added_value("scale")))


def drifts(*, form: str = "one-plus") -> str:
    return "every residual branch starts at zero" if form == "tanh" else ""


class PreNorm(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm, self.mlp = nn.LayerNorm(8), nn.Sequential(nn.Linear(8, 16), nn.GELU(), nn.Linear(16, 8))

    def forward(self, x):
        return x + self.mlp(self.norm(x))


class PostNorm(PreNorm):
    def forward(self, x):
        return self.norm(self.mlp(x) * 0.5 + x)


class Convolutions(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv1d(8, 8, 3, padding=1), nn.GroupNorm(2, 8)

    def forward(self, x):
        maps = x.flatten(0, -2).unsqueeze(-1)
        return (maps + self.norm(self.conv(maps))).view_as(x)


class Parallel(PreNorm):
    def __init__(self) -> None:
        super().__init__()
        self.mix = nn.Linear(8, 8)

    def forward(self, x):
        y = self.norm(x)
        return self.mlp(y) + self.mix(y) + x


class Shared(PreNorm):
    def forward(self, x):
        for _ in range(2):
            x = x + self.mlp(self.norm(x))
        return x


class ReadTwice(PreNorm):
    def forward(self, x):
        y = self.mlp(self.norm(x))
        return torch.cat([x + y, y], -1)


X = (torch.linspace(-2, 2, 32).reshape(4, 8),)
GATE = Gate(
    before=(places.residual,), after=after, check=check, equation=residual, drifts=drifts, merge=merge,
    cases=(
        Case("norm before", PreNorm, X),
        Case("norm after", PostNorm, X, options={"form": "sigmoid"}),
        Case("one number per channel", PreNorm, X, options={"scale": "channel"}),
        Case("per channel of a convolution", Convolutions, X, options={"scale": "channel", "form": "sigmoid"}),
        Case("two in parallel", Parallel, X, put=2),
        Case("two in a row", lambda: nn.Sequential(PreNorm(), PostNorm()), X, put=2),
        Case("from zero", PreNorm, X, options={"form": "tanh"}),
        Case("one branch in two places", Shared, X, refuses="is called 2 times in one forward"),
        Case("branch read twice", ReadTwice, X, refuses="what branch returns is also read by"),
        Case("unknown form", PreNorm, X, refuses="a form that residual knows", options={"form": "sine"}),
    ),
)  # fmt: skip
