"""Which decision of a module keeps changing, in words."""

from __future__ import annotations

from typing import Any

NAMES = (
    "train flag",
    "autocast on cpu",
    "autocast on cuda",
    "the kinds of its children",
    "compiling, exporting or gradients",
)


def changing(unit: Any, key: tuple[tuple[Any, ...], tuple[Any, ...]]) -> str:
    """What makes the call of `key` another one than all calls that `unit` has a graph for."""
    graphs = unit.graphs.get(key, [])
    if len(graphs) * 2 >= sum(map(len, unit.graphs.values())):
        return _decision(graphs)
    arguments, around = [k[0] for k in unit.graphs], [k[1] for k in unit.graphs]
    names = [*NAMES, *[attribute_words(*read) for read in unit.reads]]
    parts = [(names[i], [k[i] for k in around], now) for i, now in enumerate(key[1])]
    parts += [
        (f"part {i} of the arguments", [k[i] for k in arguments if i < len(k)], now) for i, now in enumerate(key[0])
    ]
    name, _, now = max(parts, key=lambda part: len(set(map(repr, part[1]))))
    return f"{name} changes from call to call, now {now!r:.80}"


def attribute_words(child: str, name: str) -> str:
    if child in (":", "$"):
        return f"the {'global' if child == ':' else 'environment variable'} {name}"
    return f"self.{child}.{name}" if child else f"self.{name}"


def _decision(graphs: list[Any]) -> str:
    """The line of the user's code whose answer differs most among these graphs."""
    answers: dict[str, list[Any]] = {}
    for captured in graphs:
        for line, answer in captured.decisions:
            answers.setdefault(line, []).append(answer)
    line, given = max(answers.items(), key=lambda item: len(set(map(repr, item[1]))))
    shown = ", ".join(dict.fromkeys(map(repr, given)))
    return f"the decision at {line} keeps changing ({shown[:60]})"
