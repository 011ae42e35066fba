"""What goes into a forward and comes out of it, as structures that the graph can build again."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from typing import Any

from torch import Tensor, nn

from gatec.capture.guards import Made
from gatec.capture.spies import looked_into
from gatec.capture.structure import PLAIN
from gatec.capture.values import Value


def containers(value: Any) -> Iterator[tuple[int, tuple[Any, list[Any]]]]:
    """Every list and dict among the arguments, with what stands in it."""
    if isinstance(value, (tuple, list, dict)):
        if not isinstance(value, tuple):
            yield id(value), (value, listed(value))
        for item in value.values() if isinstance(value, dict) else value:
            yield from containers(item)


def listed(container: Any) -> list[Any]:
    return [(k, id(v)) for k, v in (container.items() if isinstance(container, dict) else enumerate(container))]


def returned(tracer: Any, value: Any) -> Any:
    """What a forward returns, with the classes that fx would flatten to a dict built again by the graph."""
    if isinstance(value, (Value, Tensor, nn.Module, *PLAIN)):
        return value
    if isinstance(value, (tuple, list)) and not hasattr(value, "_fields"):
        return type(value)(returned(tracer, v) for v in value)
    if type(value) is dict:
        return {k: returned(tracer, v) for k, v in value.items()}
    return tracer.proxy(_built(tracer, value))


def _built(tracer: Any, value: Any) -> Any:
    """The node that makes an object of the value's class again."""
    if isinstance(value, tuple):
        return tracer.create_node(
            "call_function", type(value), tracer.create_arg(tuple(returned(tracer, v) for v in value)), {}
        )
    if isinstance(value, dict):
        items = {k: returned(tracer, v) for k, v in value.items()}
        if isinstance(value, defaultdict) or not all(isinstance(k, str) for k in items):
            made = Made(type(value), getattr(value, "default_factory", None))
            return tracer.create_node("call_function", made, (tracer.create_arg(items),), {})
        return tracer.create_node("call_function", type(value), (), tracer.create_arg(items))
    return tracer.made(value) if looked_into(value) else tracer.create_arg(value)
