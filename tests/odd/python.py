"""Python around the tensors: loops, comprehensions, numbers from sizes, exceptions, prints."""

import itertools
import logging
import math
import sys
import time
import warnings

import torch
from torch import nn
from torch.nn import functional as F

from odd import Block, X, call, odd, rows, under

log = logging.getLogger(__name__)
PRINTED = []


@odd(X, others=[rows(3)])
class Logs(Block):
    def forward(self, x):
        log.debug("shape %s", x.shape)
        log.info(f"a tensor of {len(x)} rows, {x.dtype}")
        if log.isEnabledFor(logging.CRITICAL + 1):
            return x
        return self.mlp(x)


@odd(X, others=[rows(3), rows(1)])
class Warns(Block):
    def forward(self, x):
        if x.shape[0] < 2:
            warnings.warn(f"only {x.shape[0]} rows", stacklevel=2)
        return self.mlp(x)


@odd(X, others=[rows(3)], refused="it calls print, and a graph would not")
class Prints(Block):
    def forward(self, x):
        print("rows", x.shape[0], file=sys.stderr)  # refused
        return self.mlp(x)


@odd(X, others=[rows(3)], refused="it asks for the time")
class AsksTheTime(Block):
    def forward(self, x):
        start = time.perf_counter()  # refused
        y = self.mlp(x)
        return y if time.perf_counter() - start < 1000 else -y


@odd(X, others=[rows(3)])
class PrintsTensor(Block):
    """A tensor inside a text: what the text says depends on data, but nobody reads it."""

    def forward(self, x):
        log.debug("mean %s", x)
        return self.mlp(x)


@odd(X, others=[rows(3, width=4), rows(2), rows(3, width=4)])
class TriesAndExcepts(Block):
    """Which branch runs depends on whether an operation fails for this shape."""

    def forward(self, x):
        try:
            y = self.mlp(x)
        except RuntimeError:
            y = self.mlp(F.pad(x, (0, 8 - x.shape[-1])))
        return y * 2


@odd(X, others=[rows(3), call(X, {"a": X}), call(X, {})])
class ExceptsKeyError(Block):
    def forward(self, x, cache=None):
        try:
            y = cache["a"]
        except (KeyError, TypeError):
            y = x * 2
        else:
            y = y + 1
        finally:
            x = x + 1
        return self.mlp(y) + x


@odd(X, others=[rows(3), rows(3, width=6), rows(2, 2), rows(0)])
class AssertsAndRaises(Block):
    def forward(self, x):
        assert x.ndim == 2, f"two dimensions, not {x.ndim}"
        if x.shape[1] != 8:
            raise ValueError(f"expected {self.up.in_features} features, got {x.shape[1]}")
        if not x.numel():
            raise NotImplementedError
        torch._assert(x.shape[0] < 100, "rows")
        return self.mlp(x)


@odd(X, others=[rows(1), rows(9), rows(16)])
class While(Block):
    def forward(self, x):
        n, y = x.shape[0], self.mlp(x)
        while n > 1:
            n //= 2
            y = y + y.roll(n, 0)
            if n == 3:
                continue
        else:
            y = y * 2
        return y


@odd(rows(2, 6), others=[rows(2, 5), rows(1, 9)])
class Chunks(Block):
    def forward(self, x):
        out = [self.mlp(x[:, i : i + 2]) for i in range(0, x.shape[1], 2)]
        return torch.cat(out, 1), {i: o.mean() for i, o in enumerate(out) if i % 2}, len(out)


@odd(call([rows(3), rows(1), rows(2)]), others=[call([rows(1), rows(2)]), call([rows(2), rows(2), rows(5)])])
class SortsBySize(Block):
    def forward(self, xs):
        ordered = sorted(xs, key=lambda x: x.shape[0], reverse=True)
        order = sorted(range(len(xs)), key=lambda i: len(xs[i]))
        longest = max(x.size(0) for x in xs)
        padded = torch.stack([F.pad(x, (0, 0, 0, longest - len(x))) for x in ordered])
        return self.mlp(padded), order, min(map(len, xs)), sum(x.shape[0] for x in xs)


@odd(rows(2, 3), others=[rows(1, 5), rows(3, 3)])
class SizeArithmetic(Block):
    def forward(self, x):
        *lead, d = x.shape
        shape = x.shape[:-1] + (2, d // 2)  # noqa: RUF005
        y = self.mlp(x).view(shape).reshape(torch.Size(lead) + torch.Size([d]))
        same = x.shape == y.shape and tuple(x.shape) == (*lead, d) and list(x.shape)[-1] == d
        return y, x.shape.numel(), math.prod(x.shape[1:]), x.shape.index(d), same, len(x.shape), (x.shape[0],) * 2


@odd(rows(2, 3), others=[rows(1, 5), rows(3, 4)])
class Roots(Block):
    def forward(self, x):
        y = (
            self.mlp(x) * x.shape[-1] ** -0.5
            + math.sqrt(x.size(1))
            + math.log(x.size(1))
            + math.log2(float(x.shape[0]))
        )
        n, m = int(x.shape[1] / 2 + 0.5), math.ceil(x.shape[1] / 2)
        y = y / float(x.size(0)) + round(x.shape[1] / 3, 2) + abs(-x.shape[1]) + pow(x.shape[1], 2) + 7 // x.shape[1]
        return y[:, :n], y[:, :m], -x.shape[1] % 3, divmod(x.shape[1], 2), x.shape[1] << 1, bool(x.shape[0] & 1)


@odd(rows(2, 3), others=[rows(1, 5), rows(3, 4), rows(6, 2)])
class MinAndMax(Block):
    def forward(self, x):
        n = min(x.shape[0], x.shape[1], 4)
        k = max(1, x.shape[1] - 3, *x.shape[:1])
        return self.mlp(x)[:n, :k], torch.topk(x, min(2, x.size(1)), 1)[0], sorted(x.shape), set(x.shape) == {2, 3}


@odd(X, others=[rows(3)])
class TextWithSizes(Block):
    def __init__(self):
        super().__init__()
        self.scales = {"rows4": 2.0}

    def forward(self, x):
        name = f"rows{x.shape[0]}"
        return self.mlp(x) * self.scales.get(name, 1.0) + len(str(x.shape)) + int("%d" % len(x))  # noqa: UP031


@odd(rows(2, 3), others=[rows(2, 4), rows(1, 1)])
class Itertools(Block):
    def forward(self, x):
        pairs = [x[:, i] * x[:, j] for i, j in itertools.combinations(range(x.size(1)), 2)]
        chained = list(itertools.chain(x.unbind(1), pairs))
        both = [a + b for a, b in itertools.zip_longest(chained, chained[1:], fillvalue=0.0)]
        return self.mlp(torch.stack(both)), [*map(torch.sum, both)], dict(zip("ab", chained, strict=False))


@odd(X, others=[rows(3)])
class Walrus(Block):
    def forward(self, x):
        if (n := x.shape[0]) > 3 and (y := self.mlp(x)).dim() == 2:
            return y * n
        a, (b, *c) = x[0], x[1:]
        return a if not c else b + sum(c)


@odd(X, others=[rows(3), under(torch.no_grad, X)])
class AnyAndAll(Block):
    def forward(self, x):
        ok = all(s > 1 for s in x.shape) and any(p.requires_grad for p in self.parameters())
        known = x.shape[0] in (3, 4) and 5 not in x.shape
        return self.mlp(x) if ok and known and not isinstance(x.shape[0], float) else x


@odd(X, others=[rows(3)])
class SizeTypes(Block):
    """Code that asks what a size is: int, and nothing else."""

    def forward(self, x):
        n = x.shape[0]
        assert isinstance(n, int) and isinstance(x.shape, torch.Size) and isinstance(x.shape, tuple)
        assert type(n) is int or type(n).__name__ != "Tensor"
        return self.mlp(x).new_full((int(n), 1), float(n)) + range(n)[-1] + [0, 1, 2, 3, 4][n] + "abcdef".index("f"[:n])


@odd(X, others=[rows(3)])
class Operators(nn.Module):
    """Every operator that Python has, on both sides."""

    def forward(self, x):
        i = (x * 4).long()
        y = 2 - x + 3 / (x.abs() + 1) + 2**x - (-x) % 3 + +x + x // 2 + abs(x) + 7 % (x.abs() + 1) + 5 // (x.abs() + 1)
        k = (i & 3) ^ (1 | i) ^ ~i ^ (i << 1) ^ (i >> 1) ^ (1 << (i & 3))
        return (
            y,
            k,
            x @ x.T,
            (x < 1) & (x >= -1) | (x == 0) ^ (x != 1),
            divmod(i, 3)[0] if hasattr(i, "__divmod__") else i,
        )


@odd(X, others=[rows(3)])
class TensorProtocol(Block):
    def forward(self, x):
        y = self.mlp(x)
        y = (
            y.T.mT.T.mT
            + x.mH[:8, :8].sum()
            + len(x)
            + sum(r.sum() for r in x)
            + torch.stack([*x])[0]
            + x[-1]
            + x[..., None][:, 0]
        )
        first, second, *_ = x
        return (
            y,
            first + second,
            x.shape[0:1],
            x.size(),
            x.dim(),
            x.nelement(),
            x.element_size(),
            x.type(),
            x.is_floating_point(),
        )


@odd(call(X, n=3), others=[call(X, n=5), call(X, n=0)])
class BuildsModulesByNumber(nn.Module):
    def __init__(self):
        super().__init__()
        self.steps = nn.ModuleList(nn.Linear(8, 8) for _ in range(3))

    def forward(self, x, n):
        for i in range(n):
            x = self.steps[i % len(self.steps)](x)
            if i == 3:
                break
        return x


@odd(X, others=[rows(3)])
class NamedStep(Block):
    """A class made in the forward, with slots and an operator of its own."""

    def forward(self, x):
        class State:
            __slots__ = ("value",)

            def __init__(self, value):
                self.value = value

            def __add__(self, other):
                return State(self.value + other.value)

        return (State(self.mlp(x)) + State(x)).value


@odd(X, others=[rows(3)])
class FixedPoint(Block):
    """A loop with a fixed number of steps and a value that is kept by its best size, not by its data."""

    def forward(self, x):
        best = None
        for step in range(4):
            x = x + 0.1 * self.mlp(x)
            best = x if best is None or x.numel() > best.numel() or step % 2 else best
        return best
