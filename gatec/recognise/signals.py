"""Signals: the factor that decides how much of the others passes."""

from __future__ import annotations

import math
from dataclasses import dataclass

from gatec.match import Term
from gatec.match.written import number
from gatec.recognise.look import ACTIVATIONS, JOINS, below, fixed, layers, learned, norm, parameter, peeled

BOUNDED = {"sigmoid", "hardsigmoid", "softmax", "tanh", "clamp"}
DECISIONS = {"gt", "ge", "not", "eq", "ne", "call:heaviside", "call:sign", "call:round", "call:logical_and",
             "call:logical_or", "call:logical_not", "call:bitwise_and", "call:bitwise_or", "call:bitwise_not",
             "call:invert", "call:isnan", "call:one_hot"}  # fmt: skip
CHOICES = {"call:topk", "call:sort", "call:gather", "call:scatter", "call:scatter_add", "call:index", "call:getitem",
           "call:index_select", "call:take_along_dim", "amax", "argmax", "call:argmax", "call:one_hot"}  # fmt: skip
RESAMPLED = ("call:interpolate", "call:upsample", "call:grid_sample")
ORDERED = {"call:sort", "call:topk"}
ALONG = {"call:flip", "call:cumsum"}  # a choice is still one when it is counted up along a row


@dataclass(frozen=True)
class Signal:
    """A factor, the activation or decision at its core, and whether only some of its numbers were chosen."""

    factor: Term
    core: Term
    chosen: bool

    @property
    def name(self) -> str:
        if self.decides and self.core.op not in DECISIONS:
            return "topk"
        if self.distributes and self.core.op != "softmax":
            return {"relu": "sparsemax"}.get(self.core.op, "entmax")
        found = self.core.op.removeprefix("call:")
        return "quick_gelu" if found == "swish" and self.core.data == 1.702 else found

    @property
    def decides(self) -> bool:
        """Whether it keeps or drops: a comparison, a rounded signal, ones scattered to chosen places."""
        return self.core.op in DECISIONS or kept(self.factor) is not None

    @property
    def compares(self) -> bool:
        """Whether it keeps or drops by what is larger: no sign, no rounding."""
        return self.decides and self.core.op not in ("call:sign", "call:round")

    @property
    def distributes(self) -> bool:
        """Whether the numbers of a row are weights that sum to one: softmax, or what is left above a threshold that
        sorting the row has given, as it is (sparsemax) or to a power (entmax)."""
        return self.core.op == "softmax" or (
            self.core.op in ("relu", "relu2", "pow") and any(t.op in ORDERED for t in below(self.core.args, 40))
        )

    @property
    def bounded(self) -> bool:
        return self.core.op in BOUNDED or self.decides or self.distributes

    @property
    def fixed(self) -> bool:
        return fixed(self.factor, looked_up=True)

    @property
    def key(self) -> object:
        """What two gates of one kind share when they are one gate at two steps: their layers, or their very signal."""
        return layers(self.core) or self.core


def signal(factor: Term) -> Signal | None:
    """The signal that a factor is, or None."""
    found, chosen = core(factor)
    if found.op == "clamp" and found.data not in ((0.0, 1.0), (None, 1.0)):
        return None
    if picked(factor):
        return Signal(factor, peeled(factor), False) if learned(factor) else None
    if found.op in DECISIONS or kept(factor) is not None:
        return Signal(factor, found, chosen) if _decided(found) and learned(factor) else None
    if _polarised(factor):
        return Signal(factor, factor, False)
    return Signal(factor, found, chosen) if found.op in ACTIVATIONS else None


def picked(factor: Term) -> bool:
    """Whether the place of the largest is compared with one number: argmax(p) == 1."""
    factor = peeled(factor)
    return _asks_place(factor) and any(number(a) is not None for a in factor.args)


def _asks_place(factor: Term) -> bool:
    return factor.op in ("eq", "ne", "gt", "ge") and any(_place(a) for a in factor.args)


def _place(t: Term) -> bool:
    return peeled(t).op.removeprefix("call:") == "argmax"


def _decided(found: Term) -> bool:
    """Rounding decides where a signal is rounded, not where numbers are quantised; what is infinite is masked."""
    if any(t.op in ("eq", "ne") and number(t.args[1]) in (math.inf, -math.inf) for t in below((found,), 12)):
        return False
    if found.op not in ("call:round",):
        return True
    inner = core(found.args[0])[0] if found.args else found
    return inner.op in BOUNDED


def _polarised(factor: Term) -> bool:
    """w^2 / (w^2 + e): a bounded function of learned numbers without an activation."""
    total = factor.args[0] if factor.op == "recip" else factor
    even = total.op == "add" and total.data > 0 and all(_even(a) for a in total.args)
    return even and fixed(factor) and any(map(parameter, below((factor,), 16)))


def _even(t: Term) -> bool:
    return t.op == "mul" and all(t.args.count(f) % 2 == 0 for f in t.args)


def kept(factor: Term) -> Term | None:
    """What was chosen, where a factor is one at the chosen places and zero elsewhere."""
    factor = peeled(factor)
    if not factor.op.startswith("call:scatter") or len(factor.args) < 2:
        return None
    index = [a for a in factor.args if a.op == "item" and a.data == 1]
    numbers = [a for a in factor.args if a.op == "const"]
    return index[0].args[0] if index and len(numbers) == len(factor.args) - 1 else None


def core(factor: Term, depth: int = 12) -> tuple[Term, bool]:
    """The activation itself under views, upsampling, choices and numbers in front and beside: 2 sigmoid(x), the largest."""
    factor = peeled(factor)
    if depth <= 0 or not factor.args:
        return factor, False
    if factor.op in ("add", "mul") and len(factor.args) == 1:
        return core(factor.args[0], depth - 1)
    if factor.op.startswith(RESAMPLED) or (factor.op == "where" and all(a.op in DECISIONS for a in factor.args)):
        return core(factor.args[0], depth - 1)
    if factor.op == "where" and (either := _annealed(factor, depth - 1)) is not None:
        return either
    if norm(factor):
        found, chosen = core(factor.args[0], depth - 1)
        return (found, chosen) if found.op in ACTIVATIONS else (factor, False)
    if factor.op in ALONG:
        found, chosen = core(factor.args[0], depth - 1)
        return (found, True) if chosen else (factor, False)
    if factor.op in ("amax", "maximum") and (alike := _alike(factor, depth - 1)) is not None:
        return alike, False
    chosen = factor.op in CHOICES or _asks_place(factor) or factor.op.startswith("call:scatter")
    if not chosen and factor.op not in ("mul", "sum", "eq"):
        return factor, False
    for a in factor.args:
        found, inner = core(a, depth - 1)
        if found.op in ACTIVATIONS and (chosen or inner or _only_weighed(factor, a)):
            return found, chosen or inner
    return (core(factor.args[0], depth - 1)[0], True) if chosen else (factor, False)


def _annealed(choice: Term, depth: int) -> tuple[Term, bool] | None:
    """A signal in a soft and in a hard form, and a setting of the model that says which: it is the soft one."""
    asked, *forms = choice.args
    found = [core(f, depth) for f in forms] if fixed(asked) and not learned(asked) else []
    soft = [(c, chosen) for c, chosen in found if c.op in ACTIVATIONS]
    either = all(c.op in ACTIVATIONS | DECISIONS for c, _ in found)
    return soft[0] if soft and either else None


def _alike(largest: Term, depth: int) -> Term | None:
    """The sigmoid of several signals, of which the largest is taken: it is one as they are."""
    inner = peeled(largest.args[0])
    parts = largest.args if largest.op == "maximum" else inner.args if inner.op in JOINS else (inner,)
    cores = [core(a, depth)[0] for a in parts]
    return cores[0] if all(c.op in ("sigmoid", "hardsigmoid") for c in cores) else None


def _only_weighed(product: Term, inner: Term) -> bool:
    """A signal times numbers, as weights divided by their sum are."""
    return product.op == "mul" and all(a is inner or a.op == "recip" or fixed(a) for a in product.args)
