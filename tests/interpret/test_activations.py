"""Every activation and operator that can be spelled obeys the law, near zero and far from it."""

import pytest
import torch
from law import check, kernel, poisoned
from torch.nn import functional as F

# numpy warns where a GPU would quietly make an infinity.
pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")


ACTIVATIONS = {
    "silu": F.silu, "gelu": F.gelu, "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"),
    "relu": F.relu, "relu6": F.relu6, "relu2": lambda x: F.relu(x) ** 2, "sigmoid": torch.sigmoid,
    "tanh": torch.tanh, "hardsigmoid": F.hardsigmoid, "hardswish": F.hardswish, "mish": F.mish,
    "hardtanh": F.hardtanh, "leaky_relu": F.leaky_relu, "elu": F.elu, "selu": F.selu,
    "celu": F.celu,
    "softplus": F.softplus, "softplus_beta": lambda x: F.softplus(x, beta=2, threshold=5),
    "logsigmoid": F.logsigmoid, "softsign": F.softsign, "tanhshrink": F.tanhshrink,
    "softshrink": F.softshrink, "hardshrink": F.hardshrink, 
    "threshold": lambda x: F.threshold(x, 0.1, 2),
    "erf": torch.erf, "expm1": torch.expm1, "exp": torch.exp, "exp2": torch.exp2, "sin": torch.sin,
    "cos": torch.cos, "abs": torch.abs, "square": torch.square, "cube": lambda x: x**3,
    "log1p": lambda x: torch.log1p(x.abs()), "log": lambda x: torch.log(1.5 + x.abs()),
    "log2": lambda x: torch.log2(1.5 + x.abs()), "sqrt": lambda x: torch.sqrt(1 + x.abs()),
    "rsqrt": lambda x: torch.rsqrt(1 + x * x), "reciprocal": lambda x: 1 / (1 + x.abs()),
    "half_power": lambda x: (1 + x.abs()) ** 1.5, "negative_power": lambda x: (1 + x.abs()) ** -2,
    "clamp": lambda x: x.clamp(-0.3, 0.4), "two_power": lambda x: 2.0**x,
    "sign": lambda x: x.sign() * x,
    "floor": lambda x: x - x.floor(), "ceil": lambda x: x - x.ceil(),
    "round": lambda x: x - x.round(),
    "masked_fill": lambda x: x.masked_fill(x > 0.5, 0.25),
    "constant": lambda x: torch.tensor(0.3) * x,
    "logical": lambda x: torch.where((x > 0.1) & ~(x > 1) | (x < -1), x, -x),
    "addcmul": lambda x: torch.addcmul(x, x, x, value=0.5),
    "addcdiv": lambda x: torch.addcdiv(x, x, 2 + x * x),
    "lerp": lambda x: torch.lerp(x, x * x, 0.7), "rsub": lambda x: torch.rsub(x, 1, alpha=2),
    "larger": lambda x: torch.maximum(x, x * x), "smaller": lambda x: torch.minimum(x, x * x),
    "bounds": lambda x: torch.clamp(x, x * x - 1, x.abs()),
    "to_bool": lambda x: x * (x > 0).float(),
    "like": lambda x: torch.ones_like(x) - x + torch.zeros_like(x),
}  # fmt: skip


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", ACTIVATIONS)
def test_activations(name: str, dtype: torch.dtype) -> None:
    """One kernel, near zero, at usual values and at large ones."""
    large = 8 if name in ("exp", "exp2", "expm1", "two_power", "cube") and dtype != torch.float32 else 30
    made = kernel(ACTIVATIONS[name], [poisoned((1, 1021), dtype)])
    for scale in (1e-3, 1, large):
        torch.manual_seed(1)
        check(ACTIVATIONS[name], [poisoned((1, 1021), dtype, scale)], made)


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_activations_where_they_bend(name: str) -> None:
    check(ACTIVATIONS[name], [torch.arange(-8, 8.25, 0.25)])


ODD = [float("nan"), float("inf"), -float("inf"), 0.0, -0.0, 1e38, -1e38, 88.9, 1e-40]


# Not gelu: torch on a CPU makes a NaN of infinity there, and a kernel does not.
@pytest.mark.parametrize(
    "name",
    ["relu", "silu", "tanh", "softplus", "clamp", "expm1", "mish", "log1p", "elu", "sign"],
)
def test_nan_and_infinity_pass_as_in_torch(name: str) -> None:
    x, fn = torch.tensor(ODD), ACTIVATIONS[name]
    torch.testing.assert_close(kernel(fn, [x]).forward(x), fn(x), equal_nan=True)


@pytest.mark.parametrize("fn", [torch.maximum, torch.minimum], ids=lambda f: f.__name__)
def test_a_nan_on_either_side_wins(fn) -> None:
    x, y = torch.tensor(ODD), torch.tensor(ODD).flip(0)
    assert torch.equal(kernel(fn, [x, y]).forward(x, y).isnan(), fn(x, y).isnan())
