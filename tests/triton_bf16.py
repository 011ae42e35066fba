"""Makes triton 3.9's interpreter honest about bfloat16, which it keeps as the bits of a uint16.

Unpatched, it does integer arithmetic on those bits, and truncates where hardware rounds.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import triton.language as tl
from triton.runtime import interpreter
from triton.runtime.interpreter import InterpreterBuilder, TensorHandle


def is_bf16(x: Any) -> bool:
    return bool(x.dtype.scalar == tl.bfloat16)


def widened(x: TensorHandle) -> TensorHandle:
    """Exact: a bfloat16 is the upper half of a float32."""
    if not is_bf16(x):
        return x
    return TensorHandle((x.data.astype(np.uint32) << 16).view(np.float32), tl.float32)


def rounded(values: np.ndarray) -> TensorHandle:
    """To the nearest bfloat16, ties to even; a NaN stays one whatever its payload."""
    bits = np.ascontiguousarray(values, dtype=np.float32).view(np.uint32).astype(np.uint64)
    half = 0x7FFF + (bits >> 16 & 1)
    upper = (bits + half >> 16).astype(np.uint16)
    return TensorHandle(np.where(np.isnan(values), np.uint16(0x7FC0), upper), tl.bfloat16)


def elementwise(original: Callable[..., TensorHandle], arity: int) -> Callable[..., TensorHandle]:
    def method(self: Any, *arguments: Any) -> TensorHandle:
        operands, rest = arguments[:arity], arguments[arity:]
        if not all(is_bf16(x) for x in operands):
            return original(self, *arguments)
        result = rest[0](*(widened(x).data for x in operands))
        return TensorHandle(result, tl.int1) if result.dtype == np.bool_ else rounded(result)

    return method


def casting(original: Callable[..., TensorHandle]) -> Callable[..., TensorHandle]:
    def method(self: Any, x: TensorHandle, to: Any, *rounding: Any) -> TensorHandle:
        if to.scalar == tl.bfloat16 and not is_bf16(x):
            # One rounding only: through float32 a float64 would be rounded twice.
            assert x.dtype.scalar != tl.float64, "float64 to bfloat16 is not modelled"
            return rounded(x.data.astype(np.float32))
        if is_bf16(x):
            return x if to.scalar == tl.bfloat16 else original(self, widened(x), to, *rounding)
        return original(self, x, to, *rounding)

    return method


def dot(original: Callable[..., TensorHandle]) -> Callable[..., TensorHandle]:
    return lambda self, a, b, *rest: original(self, widened(a), widened(b), *rest)


def reduction(original: Callable[..., Any]) -> Callable[..., Any]:
    def method(self: Any, operands: Any) -> Any:
        some = operands if isinstance(operands, tuple) else (operands,)
        assert not any(is_bf16(x) for x in some), "kernels reduce and scan in float32"
        return original(self, operands)

    return method


def install() -> None:
    """Once for each process; a second call changes nothing."""
    if getattr(InterpreterBuilder, "honest_bf16", False):
        return
    InterpreterBuilder.honest_bf16 = True
    wrappers = {
        "binary_op": lambda f: elementwise(f, 2),
        "unary_op": lambda f: elementwise(f, 1),
        "cast_impl": casting,
        "create_fp_to_fp": casting,
        "create_dot": dot,
    }
    for name, wrap in wrappers.items():
        setattr(InterpreterBuilder, name, wrap(getattr(InterpreterBuilder, name)))
    scans = interpreter.ReduceScanOpInterface
    scans.apply = reduction(scans.apply)
