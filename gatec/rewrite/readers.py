"""Who else reads what an edit changes: refusals that keep the change from being seen where it was not promised."""

from __future__ import annotations

from torch import Tensor, fx

from gatec.capture.guards import writes
from gatec.errors import Refused
from gatec.match import Canon, Match
from gatec.match.canon import Place
from gatec.match.terms import join, storage


def once(canon: Canon, match: Match) -> None:
    """Refuse layers that serve several places: what changes them for one would change the others unseen."""
    for layer in match.layers.values():
        times = max(canon.uses[layer.path], canon.uses[layer.weight])
        if times > 1:
            raise Refused(f"{layer.path} is called {times} times in one forward")


def unread(canon: Canon, match: Match) -> None:
    """Refuse where a value that changes its meaning, or goes away, is also read from outside of the match."""
    inside = {place for t in (*match.inside, match.cut) for place in canon.carriers.get(t, ())}
    gone = [match.cut] if match.cut is not match.root else [t for t in match.inside if t is not match.root]
    for term in gone:
        for path, node in canon.carriers.get(term, ()):
            for user in node.users:
                if _reads(canon, path, user) and not _stays(path, user, inside):
                    raise Refused(f"{_name(match)} is also read by {_called(user)}")


def unwritten(name: str, value: fx.Node, last: fx.Node, order: dict[fx.Node, int]) -> None:
    """Refuse where a value that the gate reads after `last` has been written in place by then."""
    memory = storage(value)
    for node in list(order)[order[value] + 1 : order[last] + 1]:
        if writes(node) and memory is not None and memory in map(storage, node.all_input_nodes[:1]):
            raise Refused(f"{name} is written in place ({node.name}) before the gate could read it")


def _name(match: Match) -> str:
    """The replaced value, in words: a hidden layer between layers, what fills a hole, or what a hole returns."""
    if len(match.layers) > 1:
        return "the hidden layer"
    return next((n for n, t in match.values.items() if t is match.cut), f"what {next(iter(match.layers))} returns")


def _stays(path: str, node: fx.Node, inside: set[Place]) -> bool:
    """Whether what `node` computes only flows into the match, as the parts of a written-out activation do."""
    if (path, node) in inside:
        return True
    return node.op != "output" and bool(node.users) and all(_stays(path, u, inside) for u in node.users)


def _reads(canon: Canon, path: str, user: fx.Node) -> bool:
    """Whether `user` reads the value itself; a captured child or parent is asked in its own graph."""
    if user.op == "output":
        return path not in canon.nested
    if user.op == "call_module":
        return join(path, str(user.target)) not in canon.swept
    return isinstance(user.meta.get("val"), Tensor)


def _called(node: fx.Node) -> str:
    if node.op == "output":
        return "whoever gets the module's output"
    return str(node.target) if isinstance(node.target, str) else getattr(node.target, "__name__", node.name)
