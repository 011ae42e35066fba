"""Which gates a model already has: products with an activation in them, blends, learned scales of residual branches."""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor

from gatec.match import Canon, Term
from gatec.recognise import cost
from gatec.recognise.find import Find
from gatec.recognise.words import Wording, gated

BOUNDED = {"sigmoid", "hardsigmoid", "softmax", "tanh", "gt", "ge"}
OPEN = {"silu", "gelu", "gelu_tanh", "relu", "relu2", "swish", "mish", "hardswish", "elu", "celu", "selu", "softplus",
        "leaky_relu", "softsign"}  # fmt: skip
GLU = {"sigmoid": "GLU", "silu": "SwiGLU", "swish": "SwiGLU", "gelu": "GEGLU", "gelu_tanh": "GEGLU", "relu": "ReGLU"}
ATTENTION = ("attention", "module:MultiheadAttention", "call:matmul", "call:bmm", "call:einsum")


def finds(canon: Canon) -> list[Find]:
    """Every gate in the terms, in the order of the graph, each product once and whole."""
    found: list[Find] = []
    used: set[int] = set()
    for term in (t for t in list(canon.carriers) if t.op == "add"):
        signal, parts = _highway(term)
        if signal and not used.intersection(map(id, parts)):
            used.update(map(id, [*parts, *_read(canon, term)]))
            found.append(_find(canon, term, "highway", signal))
        for branch in (a for a in _products(term) if id(a) not in used and _scaled_branch(a, term)):
            used.add(id(branch))  # the first sum that takes the branch up; later ones only carry it on
            signal = "tanh" if any(_core(f).op == "tanh" for f in branch.args) else "learned"
            found.append(_find(canon, term, "residual-scale", signal))
    for term in list(canon.carriers):
        kind = _product(term) if term.op == "mul" and id(term) not in used else None
        if kind is not None and _maximal(canon, term):
            found.append(_find(canon, term, *kind))
    return sorted(found, key=lambda f: f.term.number)


def _find(canon: Canon, term: Term, kind: str, signal: str) -> Find:
    path, node = max(canon.carriers[term], key=lambda place: place[0].count(".") + bool(place[0]))
    val = node.meta.get("val")
    shape = tuple(val.shape) if isinstance(val, Tensor) else ()
    gates = tuple(f for f in term.args if _signal(f)) or term.args[:1]
    values = tuple(f for f in term.args if f not in gates)
    own = cost.pointwise(canon, path, node, values)
    return Find(kind, signal, gated(values), path, str(node.meta.get("where", "")), shape, Wording().said(term),
                cost.parameters(gates), cost.flops(gates, own), cost.traffic(own), node, term)  # fmt: skip


def _read(canon: Canon, term: Term) -> Iterator[Term]:
    """The values that the nodes of a term read: g (a - b) of a lerp is no gate of its own."""
    for path, node in canon.carriers[term]:
        yield from (canon.terms[path, n] for n in node.all_input_nodes if (path, n) in canon.terms)


def _maximal(canon: Canon, term: Term) -> bool:
    """Not a part of a larger product that its only readers compute."""
    for path, node in canon.carriers[term]:
        readers = [canon.terms.get((path, u)) for u in node.users]
        whole = [r for r in readers if r is not None and r is not term and _contains(r, term)]
        if whole and len(whole) == len([r for r in readers if r is not term]):
            return False
    return True


def _contains(whole: Term, part: Term) -> bool:
    return whole.op == part.op == "mul" and all(any(a is b for b in whole.args) for a in part.args)


# -- products -------------------------------------------------------------------------------------------------------


def _product(term: Term) -> tuple[str, str] | None:
    if any(f.op in ("rsqrt", "recip") for f in term.args):
        return None  # a normalisation
    gates = [f for f in term.args if _signal(f)]
    if not gates:
        return _bilinear(term)
    gate = _strongest(gates)
    others = [f for f in term.args if f is not gate and _peeled(f).op not in ("param", "const")]
    if not others or _attends(gate):
        return None
    return _kind(gate, others), _name(gate)


def _kind(gate: Term, others: list[Term]) -> str:
    op = _core(gate).op
    if op == "softmax":
        return "router"
    if op in ("gt", "ge"):
        return "hard"
    if op in BOUNDED and all(_peeled(a).op == "param" for a in _core(gate).args):
        return "feature"
    if any(_attention(o) for o in others):
        return "attention-output"
    if op in BOUNDED and any(_pooled(gate, o) for o in others):
        return "channel" if _pooled(gate, others[0]) else "spatial"
    if op in GLU and any(
        _peeled(o).op in ("linear", "part", "conv", "call:grouped_linear") for o in others
    ):
        return "glu"
    return "product"


def _strongest(gates: list[Term]) -> Term:
    """Of several activations the bounded one gates; of equals the last computed does not."""
    bounded = [g for g in gates if _core(g).op in BOUNDED]
    return (bounded or gates)[0]


def _signal(f: Term) -> bool:
    core = _core(f)
    return core.op in BOUNDED | OPEN or (core.op == "clamp" and core.data in ((0.0, 1.0), (None, 1.0)))


def _core(f: Term) -> Term:
    """The activation itself under views, parts, constants in front and beside: 2 sigmoid(x), 1 + tanh(x), sigmoid(x)[..., 0]."""
    f = _peeled(f)
    while f.op in ("add", "mul") and len(f.args) == 1:
        f = _peeled(f.args[0])
    if f.op.startswith("call:") and f.args and f.op.partition(":")[2] in ("topk", "gather", "sort", "getitem"):
        return _core(f.args[0])
    return f


def _peeled(f: Term) -> Term:
    while (
        f.op in ("view", "part", "select", "item", "transpose", "permute", "cast", "dropout", "call:expand") and f.args
    ):
        f = f.args[0]
    return f


def _name(gate: Term) -> str:
    core = _core(gate)
    return core.op if core.op != "swish" or core.data != 1.702 else "quick_gelu"


def _bilinear(term: Term) -> tuple[str, str] | None:
    """Two linear maps of one input multiplied: a GLU without an activation."""
    linears = [f for f in term.args if f.op == "linear"]
    if (
        len(linears) == len(term.args) == 2
        and linears[0].args[0] is linears[1].args[0]
        and linears[0] is not linears[1]
    ):
        return "glu", "identity"
    return None


def _attention(value: Term, depth: int = 12) -> bool:
    """Whether the value is what attention returned, seen through its reshapes."""
    value = _peeled(value)
    if value.op in ATTENTION[:2]:
        return True
    return (
        depth > 0
        and value.op.startswith(("call:contiguous", "item"))
        and bool(value.args)
        and _attention(value.args[0], depth - 1)
    )


def _attends(gate: Term) -> bool:
    """softmax of scores between two activations: attention weights, not a gate."""
    core = _core(gate)
    return core.op == "softmax" and _reaches(core.args[0], ATTENTION[2:], 4)


def _reaches(term: Term, ops: tuple[str, ...], depth: int) -> bool:
    if term.op in ops:
        return True
    return depth > 0 and term.op != "linear" and any(_reaches(a, ops, depth - 1) for a in term.args)


def _pooled(gate: Term, value: Term) -> bool:
    """Whether the gate has one number per channel (or per position) of a value with more dimensions."""
    g, v = gate.shape, value.shape
    return bool(g and v and len(g) == len(v) > 2 and any(a == 1 < b for a, b in zip(g, v, strict=True)))


# -- blends and residual scales ---------------------------------------------------------------------------------------


def _products(term: Term) -> Iterator[Term]:
    yield from (a for a in term.args if a.op == "mul")


def _highway(term: Term) -> tuple[str, list[Term]]:
    """g a + (1 - g) b in any spelling: the gate's name and the products that make it up, or nothing."""
    products = list(_products(term))
    for p in products:
        for g in (f for f in p.args if _core(f).op in BOUNDED):
            rest = [f for f in p.args if f is not g]
            for q in products:
                split = q.data == -p.data and len(q.args) == 2 and any(f is g for f in q.args)  # b + g a - g b
                kept = [f for f in q.args if f is not g]
                if q is not p and (
                    any(_complement(f, g) for f in q.args) or (split and any(k is a for k in kept for a in term.args))
                ):
                    return _name(g), [p, q]
            if len(rest) == 1 and _difference(rest[0], [a for a in term.args if a is not p]):
                return _name(g), [p]
    return "", []


def _complement(f: Term, g: Term) -> bool:
    return (
        f.op == "add"
        and f.data == 1
        and len(f.args) == 1
        and f.args[0].op == "mul"
        and f.args[0].data == -1
        and f.args[0].args == (g,)
    )


def _difference(f: Term, others: list[Term]) -> bool:
    """f = a - b with b beside the product: b + g (a - b)."""
    if f.op != "add" or len(f.args) != 2:
        return False
    minus = [a.args for a in f.args if a.op == "mul" and a.data == -1 and len(a.args) == 1]
    return any(any(o is b[0] for o in others) for b in minus)


def _scaled_branch(p: Term, whole: Term) -> bool:
    """x + scale * branch with a learned scale; a norm's weight or a rotary table is no scale."""
    others = [a for a in whole.args if a is not p and a.op not in ("const", "param")]
    scales = [f for f in p.args if _learned(f)]
    branch = [f for f in p.args if not _learned(f)]
    if not others or whole.data != 0 or len(scales) != 1 or len(branch) != 1:
        return False
    return not _normalised(branch[0]) and branch[0].op not in ("value", "cos", "sin", "rsqrt", "recip")


def _learned(f: Term) -> bool:
    f = _peeled(f)
    return f.op == "param" or (f.op in ("tanh", "sigmoid") and _peeled(f.args[0]).op == "param")


def _normalised(f: Term) -> bool:
    f = _peeled(f)
    norm = f.op.startswith(("norm"))
    return norm or (f.op == "mul" and any(g.op in ("rsqrt", "recip") for g in f.args))
