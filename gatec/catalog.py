"""The passes found in passes/, and pipelines of them as text."""

from __future__ import annotations

import ast
import importlib
import pkgutil
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from gatec.errors import GatecError
from gatec.gate import Gate
from gatec.program import Edit
from gatec.reroll import reroll_program


@dataclass(frozen=True)
class Tool:
    """A rewrite of whole modules that a pipeline may name beside gates; it has no options."""

    name: str
    summary: str
    put: Callable[..., list[Edit]]


TOOLS = {"reroll": Tool("reroll", "loops over time run for all steps at once", reroll_program)}
Step = tuple[Gate | Tool, dict[str, Any]]
_FOUND: dict[str, Gate] = {}


def gates() -> dict[str, Gate]:
    """Every gate of passes/, by name; the folder is listed, nothing is registered by hand."""
    if not _FOUND:
        package = importlib.import_module("gatec.passes")
        for info in pkgutil.iter_modules(package.__path__):
            gate = importlib.import_module(f"gatec.passes.{info.name}").GATE
            _FOUND[gate.name] = gate
    return dict(_FOUND)


def gate(name: str) -> Gate | Tool:
    known: dict[str, Gate | Tool] = {**gates(), **TOOLS}
    if name not in known:
        raise GatecError(f"a pass named {name!r}", found=f"passes: {', '.join(known)}", hint="gatec gates lists them")
    return known[name]


def steps(passes: Iterable[Any], options: dict[str, Any]) -> list[Step]:
    """Passes as text ("glu", "moe(experts=8,top_k=2),prune"), as Gates, or as lists of both."""
    found: list[Step] = []
    for item in passes:
        if isinstance(item, (Gate, Tool)):
            found.append((item, {}))
        elif isinstance(item, str):
            found.extend(parse(item))
        elif isinstance(item, (list, tuple)):
            found.extend(steps(item, {}))
        else:
            raise GatecError(
                "a pass as text or as a Gate", found=repr(item)[:80], hint='"glu", "moe(experts=8,top_k=2)"'
            )
    if not found:
        raise GatecError("at least one pass", found="none", hint=f"one of {', '.join(gates())}")
    if options and len(found) > 1:
        raise GatecError("options inside the text where there are several passes", found=", ".join(options),
                         hint='convert(model, "glu,moe(experts=8,top_k=2)")')  # fmt: skip
    found = [(g, {**own, **options}) for g, own in found]
    for g, own in found:
        if isinstance(g, Tool) and own:
            raise GatecError(f"{g.name} without options", found=", ".join(own))
    return found


def parse(text: str) -> list[Step]:
    """A pipeline text; `spell` is its inverse."""
    found: list[Step] = []
    for part in _split(text):
        name, opened, inside = part.strip().partition("(")
        if opened and not inside.endswith(")"):
            raise GatecError(
                "a pass as NAME or NAME(option=value,...)",
                found=part.strip(),
                where=text,
                hint="moe(experts=8,top_k=2)",
            )
        if part.strip():
            found.append((gate(name.strip()), _options(inside[:-1], text)))
    return found


def _split(text: str) -> list[str]:
    """The pieces between commas that stand in no brackets and no quotes."""
    pieces, depth, quote, last = [""], 0, "", ""
    for letter in text:
        if quote:
            quote = "" if letter == quote and last != "\\" else quote
        elif letter in "\"'":
            quote = letter
        depth += 0 if quote else (letter in "([{") - (letter in ")]}")
        last = letter
        if letter == "," and not quote and depth == 0:
            pieces.append("")
        else:
            pieces[-1] += letter
    return pieces


def _options(text: str, where: str) -> dict[str, Any]:
    options: dict[str, Any] = {}
    for pair in filter(None, (p.strip() for p in _split(text))):
        key, equals, value = pair.partition("=")
        if not equals:
            raise GatecError("options as name=value", found=pair, where=where, hint="moe(experts=8,top_k=2)")
        options[key.strip()] = _value(value.strip())
    return options


def _value(text: str) -> Any:
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text


def spell(found: Iterable[Step]) -> str:
    """Steps as pipeline text."""
    return ",".join(
        g.name + (f"({','.join(f'{k}={_text(v)}' for k, v in own.items())})" if own else "") for g, own in found
    )


def _text(value: Any) -> str:
    bare = isinstance(value, str) and re.fullmatch(r"[\w./:+-]+", value) is not None and _value(value) == value
    return str(value) if bare else repr(value)
