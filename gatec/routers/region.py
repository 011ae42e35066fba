"""A router as a region: from one row of logits for each token to its best columns and their weights.

    scores = score(logits)          chosen = topk(scores + bias, k)
    weights = factor * scores[chosen] / (sum of scores[chosen] + eps)

The bias, the division and the factor are there or not. A softmax of the k largest logits is the same as a softmax whose
k largest are divided by their sum.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

from gatec.dispatch import Run
from gatec.kernels.router import Groups
from gatec.match import Term
from gatec.mixtures.reading import Unlike, called, given, name_of, number, shape, wants
from gatec.recognise import Find
from gatec.regions import POINTWISE, Region, Surroundings, function, graph_of
from gatec.routers.groups import grouped

CASTS = {"to", "float", "type", "type_as", "half", "bfloat16", "contiguous"}
PLACES = {"values": 0, "indices": 1}
SCORES = POINTWISE | CASTS | {"softmax"}


@dataclass(frozen=True)
class Routing(Region):
    """`scores` are the nodes from the logits to what is chosen among; `results` the weights and the choice."""

    scores: tuple[fx.Node, ...]
    results: tuple[fx.Node, fx.Node]
    choices: int
    normalised: bool = False
    eps: float = 0.0
    factor: float = 1.0
    groups: Groups | None = None
    after: str = ""  # what is applied to the scores that were chosen: "softmax" or "sigmoid"

    @property
    def anchor(self) -> str:
        return "router"

    @property
    def name(self) -> str:
        return f"{super().name}_{self.choices}_of_{self.columns}"

    @property
    def outputs(self) -> tuple[fx.Node, ...]:
        return self.results

    @property
    def columns(self) -> int:
        return shape(self.inputs[0])[-1]

    @property
    def biased(self) -> bool:
        return len(self.inputs) > 1

    @property
    def options(self) -> dict[str, Any]:
        normalised = self.normalised or self.after == "softmax"
        return {"choices": self.choices, "normalised": normalised, "eps": self.eps, "factor": self.factor,
                "groups": self.groups}  # fmt: skip

    def score(self) -> Run:
        """The score of a row of logits."""
        logits = self.inputs[0]
        graph = graph_of({logits: "logits"}, self.scores, self.scores[-1] if self.scores else logits)
        if self.after:
            end: Any = graph.output_node()
            with graph.inserting_before(end):
                end.args = (graph.call_function(*AFTER[self.after](end.args[0])),)
        return function(graph)

    def graph(self) -> fx.Graph:
        """The weights, and which columns they belong to."""
        return graph_of(dict(zip(self.inputs, self.operands, strict=True)), self.nodes, self.outputs)


AFTER: dict[str, Any] = {
    "softmax": lambda x: (F.softmax, (x, -1)),
    "sigmoid": lambda x: (torch.sigmoid, (x,)),
}


def routings(graph: fx.Graph, module: nn.Module) -> Iterator[Routing]:
    """Every choice of the largest scores in a graph whose weights can be computed together with it."""
    tops = [n for n in graph.nodes if name_of(n) == "topk"]
    around = Surroundings.of(graph, module) if tops else None
    for top in tops:
        try:
            assert around is not None
            found = _routing(top, around)
        except (Unlike, AttributeError, IndexError, KeyError, TypeError, ValueError):
            continue
        yield found


def _routing(top: Any, around: Surroundings) -> Routing:
    key, k = top.args[0], number(given(top, 1, "k"))
    wants(
        number(given(top, 2, "dim", default=-1)) in (-1, len(shape(key)) - 1) and given(top, 3, "largest", default=True)
    )
    read = [n for n in top.users if name_of(n) in ("getitem", "getattr") and n.users]
    places = {PLACES.get(n.args[1], n.args[1]): n for n in read}
    wants(
        isinstance(key, fx.Node) and type(k) is int and 1 in places and len(places) == len(read),
        "no choice that is read",
    )
    beside = [n for n in top.users if n not in read]
    wants(all(not n.users or name_of(n) == "len" for n in beside))
    gathered = [u for u in places[1].users if name_of(u) == "gather" and given(u, 2, "index") is places[1]]
    groups, among, masked = grouped(key)
    scored, bias = among, None
    if 0 in places:
        start = places[0]
        wants(not gathered and (groups is None or _outdone(groups, key, k)))
    else:
        (start,) = gathered
        wants(number(given(start, 1, "dim")) in (-1, len(shape(key)) - 1))
        if start.args[0] is not among:
            scored, bias = _biased(among, start.args[0])
    logits, scores = _scores(scored)
    end, options, inner = _weights(start)
    own = dict.fromkeys(
        [*scores, *([among] if bias is not None else []), *masked, top, *places.values(), start, *inner]
    )
    nodes = tuple(sorted(own, key=around.place.__getitem__))
    first = min(end, places[1], key=around.place.__getitem__)
    here = {around.place[n] for n in nodes}
    others = Surroundings(around.place, [w for w in around.writers if w[0] not in here])
    wants(all(others.waits(n, first) for n in nodes if around.place[n] < around.place[first]))
    inputs = (logits, *([bias] if bias is not None else []))
    signal = options.get("after") or next((n for n in map(name_of, reversed(scores)) if n not in CASTS), "linear")
    find = Find("router", str(signal), "logits", "", str(top.meta.get("where", "")), shape(end), "", 0, 0, 0, top,
                Term("call:topk"))  # fmt: skip
    return Routing(find, nodes, inputs, tuple(scores), (end, places[1]), k, groups=groups, **options)


def _outdone(groups: Groups, key: Any, k: int) -> bool:
    """Whether columns outside the best groups are never among the k largest, so that weights are scores."""
    positive = name_of(key.args[0]) in ("softmax", "sigmoid") and groups.fill == 0.0
    return groups.kept * (shape(key)[-1] // groups.count) >= k and (positive or groups.fill == float("-inf"))


def _biased(key: Any, scored: Any) -> tuple[Any, Any]:
    """(the scores, a number for each column that moves the choice only)."""
    first, second = called(key, "add").args
    bias = second if first is scored else first
    wants(scored in (first, second) and len(shape(bias)) == 1 and not key.kwargs)
    return scored, bias


def _scores(node: Any) -> tuple[Any, list[fx.Node]]:
    """The logits, and what makes scores of them."""
    nodes: list[fx.Node] = []
    while name_of(node) in SCORES and len(node.all_input_nodes) == 1:
        if name_of(node) == "softmax":
            wants(number(given(node, 1, "dim")) in (-1, len(shape(node)) - 1))
        nodes.append(node)
        node = node.all_input_nodes[0]
    wants(isinstance(node.meta.get("val"), Tensor) and node.meta["val"].is_floating_point() and len(shape(node)) > 1)
    return node, nodes[::-1]


def _weights(node: Any) -> tuple[fx.Node, dict[str, Any], list[fx.Node]]:
    """The last node that only the weights go through, what is done to them, and the nodes on the way."""
    options: dict[str, Any] = {}
    inner: list[fx.Node] = []
    while True:
        step = _step(node, options)
        if not step:
            return node, options, inner
        node = step[-1]
        inner += step


def _step(node: Any, options: dict[str, Any]) -> list[Any]:
    """The nodes of the next thing that is done to the weights; nothing where they go elsewhere."""
    users = list(node.users)
    if len(users) == 2 and not {"normalised", "factor"} & set(options):
        return _divided(node, users, options)
    if len(users) != 1:
        return []
    (user,) = users
    name = name_of(user)
    if name in ("softmax", "sigmoid") and not options:
        dim = number(given(user, 1, "dim"))
        if name == "softmax" and dim not in (-1, len(shape(node)) - 1):
            return []
        options["after"] = name
        return [user]
    constant = [a for a in user.args if not isinstance(a, fx.Node)]
    if name in ("mul", "imul") and len(constant) == 1 and type(constant[0]) in (int, float) and "factor" not in options:
        options["factor"] = float(constant[0])
        return [user]
    return [user] if name in CASTS and user.all_input_nodes == [node] else []


def _divided(node: Any, users: list[Any], options: dict[str, Any]) -> list[Any]:
    """Each row by its sum."""
    total = next((u for u in users if name_of(u) == "sum"), None)
    ratio = next((u for u in users if name_of(u) in ("truediv", "itruediv", "div", "div_")), None)
    if total is None or ratio is None or ratio.args[0] is not node or not given(total, 2, "keepdim", default=False):
        return []
    if number(given(total, 1, "dim")) not in (-1, len(shape(node)) - 1):
        return []
    below, between = ratio.args[1], []
    if below is not total and name_of(below) in ("add", "iadd") and below.args[0] is total:
        options["eps"] = float(below.args[1])
        between = [below]
    if (between or [total])[-1] is not below or any(len(n.users) != 1 for n in (total, *between)):
        options.pop("eps", None)
        return []
    options["normalised"] = True
    return [total, *between, ratio]
