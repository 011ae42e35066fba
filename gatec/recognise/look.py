"""Questions about terms: what stands under views and casts, what a layer is, what a value comes from."""

from __future__ import annotations

from collections.abc import Collection, Iterator

from gatec.match import Term
from gatec.match.terms import Buffer

CALLS = ("layer:", "call:", "module:")
VIEWS = {
    "view",
    "part",
    "select",
    "item",
    "transpose",
    "permute",
    "cast",
    "dropout",
    "repeat",
    "call:contiguous",
    "call:movedim",
}
WHOLE = {"view", "transpose", "permute", "cast", "dropout", "call:contiguous", "call:movedim"}
CONTRACTIONS = {"call:matmul", "call:bmm", "call:mm", "call:einsum", "call:baddbmm", "call:addmm", "call:tensordot"}
GROUPED = {"call:grouped_linear", "call:grouped_mm", "call:_grouped_mm"}  # a matrix for each group of rows
MIXED = {"call:routed_convolution"}  # stored kernels, mixed by a row of weights for each sample
REDUCTIONS = {
    "sum",
    "mean",
    "amax",
    "amin",
    "call:norm",
    "call:linalg_vector_norm",
    "call:std",
    "call:var",
    "call:normalize",
}
ACTIVATIONS = {"sigmoid", "hardsigmoid", "tanh", "silu", "swish", "gelu", "gelu_tanh", "relu", "relu2", "mish", "hardswish",
               "elu", "celu", "selu", "softplus", "leaky_relu", "softsign", "clamp", "softmax"}  # fmt: skip
POINTWISE = ACTIVATIONS | VIEWS | {"add", "mul", "recip", "exp", "log", "sqrt", "rsqrt", "pow", "abs", "logsigmoid", "sin", "cos",
             "gt", "ge", "not", "where", "maximum", "minimum", "ndtr", "call:round", "call:sign"} - {"softmax"}  # fmt: skip
JOINS = {"call:cat", "call:concat", "call:concatenate", "call:hstack", "call:vstack", "call:stack"}
WEIGHTS = {"softmax", "relu2"}
SIZES = {"const", "size", "call:arange"}
FIXED = {*SIZES, "call:tensor", "call:eye"}
INDEXED = {"call:getitem", "call:index", "call:index_select", "call:gather"}


def peeled(term: Term) -> Term:
    """What stands under views, parts and casts; of a call with a backward of its own what it computes."""
    while True:
        if term.op in VIEWS and term.args:
            term = term.args[0]
        elif isinstance(term.data, tuple) and term.data and isinstance(term.data[-1], Term):
            term = term.data[-1]
        else:
            return term


def whole(term: Term) -> Term:
    """What stands under views that keep all of it."""
    while term.op in WHOLE and term.args:
        term = term.args[0]
    return term


def convolution(term: Term) -> bool:
    return term.op == "conv"


def norm(term: Term) -> bool:
    return term.op == "norm" or term.op.endswith("RMSNorm")


def layered(term: Term) -> bool:
    return term.op in ("linear", "conv", "embedding")


def raw(term: Term) -> bool:
    """What flows in from outside."""
    return peeled(term).op == "value"


def below(
    terms: tuple[Term, ...], most: int = 64, through: bool = False, stop: Collection[Term] = ()
) -> Iterator[Term]:
    """Terms that these are computed from, nearest first: up to layers, or through them, not behind sizes; at most `most`."""
    queue, seen = list(terms), set(terms)
    for term in queue:
        yield term
        if (layered(term) and not through) or term.op in SIZES or term in stop:
            continue
        grouped = term.op in GROUPED and not through  # as a layer, but for its matrices
        for a in term.args:
            if a not in seen and len(queue) < most and not (grouped and not parameter(peeled(a))):
                seen.add(a)
                queue.append(a)


def reaches(term: Term, wanted: Term, most: int = 200) -> bool:
    """Whether a value is computed from another one, by layers or without."""
    return any(t is wanted for t in below((term,), most, through=True))


def parameter(term: Term) -> bool:
    return term.op == "param" and not isinstance(term.data, Buffer)


def fixed(term: Term, looked_up: bool = False) -> bool:
    """Whether a value is the same for every input: made of parameters, buffers and numbers alone.

    `looked_up`: or of rows of a learned table, whichever an input asks for.
    """
    known = term.answers.get(("fixed", looked_up))
    if known is None:
        known = term.answers["fixed", looked_up] = _fixed(term, looked_up)
    return known


def _fixed(term: Term, looked_up: bool, most: int = 48) -> bool:
    queue = [(term, looked_up)]
    for t, rows in queue:
        if t.op in SIZES or (rows and _looks_up(t)):
            continue
        if not (t.args or t.op == "param" or t.op in FIXED):
            return False
        queue += [step for a in t.args if (step := (a, rows and t.op in POINTWISE)) not in queue]
        if len(queue) >= most:
            return False
    return True


def _looks_up(term: Term) -> bool:
    """A row of a learned table: an embedding, an index, ones at the row's place times the table."""
    if term.op == "linear":
        return peeled(term.args[0]).op in ("call:one_hot", "eq")
    return term.op == "embedding" or (term.op in INDEXED and peeled(term.args[0]).op == "param")


def learned(term: Term, most: int = 64) -> bool:
    """Whether something that is trained stands behind a value."""
    return any(layered(t) or parameter(t) for t in below((term,), most))


def layers(term: Term, most: int = 64) -> frozenset[object]:
    """The layers that a value comes out of directly."""
    return frozenset(t.data for t in below((term,), most) if layered(t))


def pointwise_of(term: Term, sources: tuple[Term, ...], depth: int = 8) -> bool:
    """Whether a value is computed from these alone, element by element."""
    if term in sources or whole(term) in sources or term.op in ("const", "size", "param"):
        return True
    inner = depth > 0 and term.op in POINTWISE and bool(term.args)
    return inner and all(pointwise_of(a, sources, depth - 1) for a in term.args)


def source(term: Term) -> Term | None:
    """The input of the layer that a value comes out of, under activations, norms and numbers."""
    made = layer_of(term, alone=True)
    return whole(made.args[0]) if made is not None else None


def layer_of(term: Term, depth: int = 10, alone: bool = False) -> Term | None:
    """The layer that a value comes out of, under activations, norms and numbers; `alone`: the only one."""
    term = peeled(term)
    if layered(term) or (term.op in CONTRACTIONS | GROUPED and any(peeled(a).op == "param" for a in term.args)):
        return term
    inner = term.op in ACTIVATIONS or norm(term) or (term.op in ("add", "mul", "call:cat") and bool(term.args))
    args = [a for a in term.args if not fixed(a)]
    if depth <= 0 or not inner or (alone and len(args) > 1):
        return None
    return next((f for a in args if (f := layer_of(a, depth - 1, alone)) is not None), None)


def attention(term: Term, depth: int = 4) -> bool:
    """Whether the value is what attention returned, or the sum of what several did, seen through reshapes."""
    term = peeled(term)
    if term.op in ("attention", "module:MultiheadAttention"):
        return True
    if term.op == "add" and len(term.args) > 1:
        return depth > 0 and all(attention(a, depth - 1) for a in term.args)
    if term.op == "mul":
        moving = [a for a in term.args if not fixed(a)]
        return depth > 0 and len(moving) == 1 and attention(moving[0], depth - 1)
    return term.op in CONTRACTIONS and any(attends(a) or _squared(a) for a in term.args)


def _squared(weights: Term, depth: int = 4) -> bool:
    """Scores between two activations, or those of queries with a sum over keys and values: attention without softmax."""
    weights = peeled(weights)
    if weights.op in ("mul", "add", "relu", "relu2", "where") and depth > 0:
        return any(_squared(a, depth - 1) for a in weights.args)
    return _scores(weights)


def attends(weights: Term) -> bool:
    """softmax or squared relu of scores between two activations: attention weights, not a gate."""
    weights = peeled(weights)
    while weights.op == "mul" and (inner := [a for a in weights.args if peeled(a).op in ("mul", *WEIGHTS)]):
        weights = peeled(inner[0])  # times a number, or zero where everything is masked
    most = {"softmax": 24}.get(weights.op, 4)  # a mask and a bias may stand before a softmax
    return weights.op in WEIGHTS and any(_scores(t) for t in below(weights.args, most))


def _scores(term: Term) -> bool:
    return term.op in CONTRACTIONS and not any(peeled(a).op == "param" for a in term.args)


# -- which dimension holds the features -------------------------------------------------------------------------------


def axis(term: Term, depth: int = 12) -> int | None:
    """The dimension, counted from the last, along which a value's features lie; None where nothing says so."""
    rank = len(term.shape or ())
    if term.op in ("linear", "embedding"):
        turned = axis(term.args[0], depth - 1) if term.op == "linear" else None
        return turned if turned is not None else -1
    if term.op == "conv":
        turned = axis(term.args[0], depth - 1)
        return turned if turned is not None else -1 - len(term.data.kernel)
    if term.op == "view":
        held = axis(term.args[0], depth - 1) if depth > 0 else None
        return _carried(held, term.args[0].shape or (), term.shape or ())
    if term.op in ("permute", "transpose") and rank:
        perm = term.data if term.op == "permute" else (*range(rank - 2), rank - 1, rank - 2)
        held = axis(term.args[0], depth - 1)
        held = held if held is not None else {3: -1, 4: -3}.get(rank)
        return perm.index(held + rank) - rank if held is not None and held + rank in perm else None
    if depth <= 0 or not (term.op in POINTWISE or norm(term)):
        return None
    alike = [a for a in term.args if a.shape == term.shape] or term.args  # what is repeated says nothing
    return next((found for a in alike if (found := axis(a, depth - 1)) is not None), None)


def _carried(held: int | None, before: tuple[int, ...], after: tuple[int, ...]) -> int | None:
    """Where a dimension is after a view: where it was, counted from the side on which all sizes up to it stayed."""
    if held is None:
        return None
    if before[held:] == after[held:]:
        return held
    front = len(before) + held
    return front - len(after) if before[: front + 1] == after[: front + 1] else None


def mixes_positions(term: Term) -> bool:
    """Whether a layer is applied along positions: a linear on the turned value, a convolution over tokens as channels."""
    if not layered(term) or term.op == "embedding":
        return False
    turned = axis(term.args[0])
    own = -1 if term.op == "linear" else -1 - len(term.data.kernel)
    return turned is not None and turned != own


def wide(term: Term) -> bool:
    """Whether a convolution sees neighbours."""
    return term.op == "conv" and any(k != 1 for k in term.data.kernel)
