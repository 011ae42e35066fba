"""What a torch.autograd.Function computes forwards, as a graph of its own; its call stays one node."""

from __future__ import annotations

from typing import Any

from torch import Tensor, fx, nn

from gatec.capture.record import Call
from gatec.capture.tracer import trace
from gatec.capture.values import Apply
from gatec.errors import Refused


class Context:
    """Takes whatever a forward keeps for its backward."""

    def save_for_backward(self, *values: Any) -> None:
        pass

    save_for_forward = mark_dirty = mark_non_differentiable = set_materialize_grads = save_for_backward


class Forward(nn.Module):
    """The forward of one function, of its tensors; `None` in `given` is where they go."""

    def __init__(self, function: Any, given: tuple[Any, ...]) -> None:
        super().__init__()
        self.function, self.given = function, given

    def forward(self, *tensors: Tensor) -> Any:
        feed = iter(tensors)
        args = [next(feed) if a is None else a for a in self.given]
        alone = "setup_context" in vars(self.function)  # the newer form, whose forward has no context
        return self.function.forward(*args) if alone else self.function.forward(Context(), *args)


def inside(node: fx.Node) -> fx.Graph | None:
    """The graph of an applied function's forward over its tensors, or None where it cannot be traced or says nothing."""
    if not isinstance(node.target, Apply) or any(isinstance(a, (list, tuple, dict)) or a is None for a in node.args):
        return None
    tensors = tuple(a.meta.get("val") for a in node.args if isinstance(a, fx.Node))
    if node.kwargs or not all(isinstance(t, Tensor) for t in tensors):
        return None
    module = Forward(node.target.function, tuple(None if isinstance(a, fx.Node) else a for a in node.args))
    try:
        graph = trace(module, Forward.forward, Call(tensors, {}, node.meta.get("val"))).graph
    except Refused:
        return None
    plain = all(n.op in ("placeholder", "call_function", "call_method", "output") for n in graph.nodes)
    return graph if plain and sum(n.op == "placeholder" for n in graph.nodes) == len(tensors) else None
