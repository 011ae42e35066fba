"""Functions which Triton lacks without libdevice, written so that an interpreter can run them too.

Each text defines `NAME_of`, and is put into a kernel only when a line of it calls that function.
"""

import re
from collections.abc import Iterable, Sequence
from typing import Literal

Wide = Literal["float32", "float64"]

EXPM1 = '''
@triton.jit
def expm1_of(x):
    """exp(x) - 1. Near zero the error of exp cancels against the same error inside log."""
    e = tl.exp(x)
    near = (e - 1.0) * x / tl.log(tl.where((e == 1.0) | (e == 0.0), 2.0, e))
    return tl.where(e == 1.0, x, tl.where(tl.abs(x) < 1.0, near, e - 1.0))
'''

LOG1P = '''
@triton.jit
def log1p_of(x):
    """log(1 + x), times what rounding 1 + x took away from x."""
    u = 1.0 + x
    exact = (u == 1.0) | (u == float("inf"))
    return tl.where(exact, x, tl.log(u) * (x / tl.where(exact, 1.0, u - 1.0)))
'''

# Fitted to (tanh(x) - x) / x**3 on Chebyshev nodes for the least relative error: 0.7 ulp in all.
TANH = '''
@triton.jit
def tanh_of(x):
    """Exponentials, but a polynomial near zero, where exponentials cancel."""
    s = x * x
    p = -0.00559746
    p = p * s + 0.020545274
    p = p * s + -0.053711887
    p = p * s + 0.13331123
    p = p * s + -0.33333272
    near = x + x * s * p
    size = tl.abs(x)
    far = 1.0 - 2.0 / (tl.exp(2.0 * size) + 1.0)
    return tl.where(size < 0.625, near, tl.where(x < 0.0, -far, far))
'''

TANH64 = """
@triton.jit
def tanh_of(x):
    size = tl.abs(x)
    e = expm1_of(-2.0 * size)
    t = -e / (e + 2.0)
    return tl.where(x < 0.0, -t, t)
"""

ROUND = '''
@triton.jit
def round_of(x):
    """To the nearest integer, ties to even: adding this constant leaves no room for a fraction."""
    rounded = (tl.abs(x) + {shift!r}) - {shift!r}
    return tl.where(tl.abs(x) < {shift!r}, tl.where(x < 0.0, -rounded, rounded), x)
'''


def texts(wide: Wide) -> dict[str, str]:
    single = wide == "float32"
    return {
        "expm1_of": EXPM1,
        "log1p_of": LOG1P,
        "tanh_of": TANH if single else TANH64,
        "round_of": ROUND.format(shift=float(2**23 if single else 2**52)),
    }


def needed(lines: Iterable[str], wide: Wide) -> Sequence[str]:
    """The texts of all functions called in these lines, each behind those which it calls itself."""
    known, found = texts(wide), list[str]()

    def visit(text: str) -> None:
        for name in re.findall(r"\b(\w+_of)\(", text):
            if known[name] not in found and known[name] != text:
                visit(known[name])
                found.append(known[name])

    for line in lines:
        visit(line)
    return found
