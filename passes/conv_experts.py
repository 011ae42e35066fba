"""Convolution experts: every image goes through the kernels of the experts that a router picks for it.

    before    y = conv(x; W)
    after     y = sum of w_e(x) * conv(x; W + D_e) over the chosen experts e,    D = 0 at birth

Born neutral to rounding. The router sees the mean of each channel, less its running mean in training; an image that no
expert takes goes through W alone.
Balance, soft: `gatec.losses(model, balance=0.01)`; hard: `router="capped"` closes experts that have too much in training,
`router="expert_choice"` gives every expert as many images of a batch.
A batch norm behind it keeps its statistics of the one kernel that there was: train it along, or, where it is frozen or
routers draw noise in training, `torch.optim.swa_utils.update_bn(loader, model)` at the end.
Pavlitska et al. 2022, "Sparsely-gated Mixture-of-Expert Layers for CNN Interpretability", https://arxiv.org/abs/2204.10598
"""

import torch
from torch import nn
from torch.nn import functional as F

from gatec import Case, Gate, GatecError, Pooled, places, routed_convolution, router_named

KINDS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)


def check(site, layer, *, experts: int = 4, top_k: int = 1, router: str = "softmax") -> None:
    router_named(router)
    if not all(isinstance(n, int) for n in (experts, top_k)) or not 1 <= top_k <= experts:
        raise GatecError(
            "1 <= top_k <= experts", found=f"experts={experts}, top_k={top_k}", hint="conv_experts(experts=4)"
        )
    if "weight" not in layer.module._parameters:
        site.refuse("its weight is computed (a parametrization)")
    if layer.kind not in KINDS:
        site.refuse(f"it is a {layer.kind.__name__}, which may compute something else than a convolution")


def after(
    site, x, layer, *, experts: int = 4, top_k: int = 1, router: str = "softmax", hidden: int = 0, tasks: int = 1
):
    conv, like, channels = layer.module, site.like(layer), layer.module.in_channels

    def pooled() -> nn.Module:
        return Pooled(channels, len(conv.kernel_size), like["device"])

    def route() -> nn.Module:
        return router_named(router)(channels, experts, top_k, whole=False, hidden=hidden, tasks=tasks, **like)

    means = site.add("pooled", pooled, near=layer)(x)
    routed = site.add("router", route, near=layer)(means)
    deltas = site.add("experts", lambda: nn.Parameter(torch.zeros(experts, *conv.weight.shape, **like)), near=layer)
    x, padding = padded(conv, x)
    y = routed_convolution(x, layer.parameter("weight"), deltas, mix_of(site.added_value("router"), routed, experts),
                           conv.stride, padding, conv.dilation, conv.groups)  # fmt: skip
    bias = layer.parameter("bias")
    return y if bias is None else y + bias.reshape(-1, *[1] * len(conv.kernel_size))


def padded(conv, x):
    """x with what a convolution itself cannot add to it, and what is left to add on both sides."""
    if conv.padding_mode == "zeros" and not isinstance(conv.padding, str):
        return x, conv.padding
    mode = "constant" if conv.padding_mode == "zeros" else conv.padding_mode
    return F.pad(x, conv._reversed_padding_repeated_twice, mode), (0,) * len(conv.kernel_size)


def mix_of(router, routed, experts: int):
    """What every expert counts for every image."""
    if not router.fixed:
        return routed
    chosen, weight = routed[0], routed[1]
    return weight.new_zeros(weight.shape[0], experts).scatter(1, chosen, weight)


def birth(site, layer, *, experts: int = 4, seed: int = 0) -> None:
    """Scores that differ, so that images do: equal ones would always choose the same experts."""
    drawn = torch.randn(experts, layer.module.in_channels, generator=torch.Generator().manual_seed(seed))
    site.added_value("router").start(drawn.to(layer.weight))


class Scaled(nn.Conv2d):
    def forward(self, x):
        return 2 * super().forward(x)


class Images(nn.Module):
    """Rows of numbers, however many dimensions they lie in, are images of 4 channels."""

    def __init__(self, *layers: nn.Module) -> None:
        super().__init__()
        self.layers = nn.Sequential(*layers)

    def forward(self, x):
        return self.layers(x.flatten(0, -2).unflatten(-1, (4, 6, 6))).flatten(1).unflatten(0, x.shape[:-1])


def two(*layers: nn.Module) -> Images:
    return Images(*layers, nn.ReLU(), nn.Conv2d(6, 2, 1))


def normed() -> Images:
    return Images(nn.utils.parametrizations.weight_norm(nn.Conv2d(4, 6, 3)))


X = (torch.linspace(-2, 2, 3 * 144).reshape(3, 144).sin(),)
GATE = Gate(
    before=(places.convolution,), after=after, check=check, birth=birth,
    born="drifts: the images of an expert are convolved apart from the others",
    cases=(
        Case("two convolutions", lambda: two(nn.Conv2d(4, 6, 3, padding=1)), X, put=2),
        Case("in groups, with a stride", lambda: two(nn.Conv2d(4, 6, 3, stride=2, groups=2, bias=False)), X, put=2,
             options={"top_k": 2}),
        Case("depthwise", lambda: Images(nn.Conv2d(4, 4, 3, groups=4)), X, options={"router": "capped"}),
        Case("experts choose", lambda: two(nn.Conv2d(4, 6, (3, 2), dilation=2, padding="same")), X, put=2,
             options={"router": "expert_choice"}),
        Case("padding by reflection", lambda: Images(nn.Conv2d(4, 6, 3, padding=1, padding_mode="reflect")), X),
        Case("a convolution of its own kind", lambda: Images(Scaled(4, 6, 3)), X, refuses="may compute something else"),
        Case("weight norm", normed, X, refuses="a parametrization"),
    ),
)  # fmt: skip
