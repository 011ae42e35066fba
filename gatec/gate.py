"""What a pass declares: an equation, the places it goes to, how it is put there, how it is born, and its cases."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from gatec.equation import Equation
from gatec.errors import GatecError
from gatec.match import Pattern


@dataclass(frozen=True)
class Case:
    """An example inside a declaration, from which tests are made: how often the gate is put, or why it is not."""

    name: str
    model: Callable[[], Any]
    inputs: tuple[Any, ...]
    put: int = 1
    refuses: str = ""
    options: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, eq=False, repr=False)
class Gate:
    """One rewrite of a model.

    before    patterns: plain functions whose parameters are holes (Tensor, Linear, Activation, Branch, Block, Attention ...);
              where several fit one place, the first that can be put there is
    after     builds the replacement from what filled the holes; its keyword-only parameters are the gate's options
    check     declines a match, in words (match.refuse); never builds
    birth     sets the first values of what `after` added; its keyword-only parameters are options too
    born      "neutral", or "drifts: ..." with what is given up
    drifts    for a gate that is neutral but for some options: what they give up, "" for the others
    tries     for an `after` that replaces parameters by larger ones (site.repeat), of which only putting it shows whether
              it goes: the options with which a dry run puts it and takes it out again
    closes    for `compact`: what of a put gate is closed, as a mask over what it gates
    of        what `closes` is a mask over: "hidden units" of the place's layers, or "blocks" (one value), or "embedding rows"
    factors   for `compact` of rows: what each row is multiplied by
    moved     for a birth that reorders the hidden units of the user's layers: which unit each of them was before;
              `revert` puts them back and dense checkpoints are loaded in this order (None where none has moved)
    share     for reports: the share of the hidden layer that one token runs through, where that is not all of it
    merge     for `merge`: folds a gate that is a constant into weights (site.scale_inputs, site.scale_outputs)
    """

    before: tuple[Callable[..., Any], ...]
    after: Callable[..., Any]
    equation: Equation | None = None
    check: Callable[..., None] | None = None
    birth: Callable[..., None] | None = None
    born: str = "neutral"
    drifts: Callable[..., str] | None = None
    tries: dict[str, Any] | None = None
    closes: Callable[..., Any] | None = None
    of: str = "hidden units"
    factors: Callable[..., Any] | None = None
    moved: Callable[..., Any] | None = None
    share: Callable[..., float] | None = None
    merge: Callable[..., None] | None = None
    cases: tuple[Case, ...] = ()
    home: str = ""

    def __post_init__(self) -> None:
        frame = sys._getframe(2).f_globals
        object.__setattr__(self, "home", frame["__name__"])
        object.__setattr__(self, "doc", inspect.cleandoc(frame.get("__doc__") or ""))
        object.__setattr__(self, "patterns", tuple(Pattern(f) for f in self.before))

    patterns: tuple[Pattern, ...] = field(default=(), init=False)
    doc: str = field(default="", init=False)

    @property
    def name(self) -> str:
        return self.home.rpartition(".")[2]

    @property
    def summary(self) -> str:
        return self.doc.partition("\n")[0]

    @property
    def neutral(self) -> bool:
        return self.born == "neutral"

    def gives_up(self, options: dict[str, Any]) -> str:
        """What a birth with these options gives up; "" where it is neutral."""
        if self.drifts is None:
            return "" if self.neutral else self.born.removeprefix("drifts: ")
        return self.drifts(**self.accepted(self.drifts, {**self.defaults, **options}))

    @property
    def defaults(self) -> dict[str, Any]:
        """The options with their defaults: keyword-only parameters of after, check and birth."""
        found: dict[str, Any] = {}
        for function in filter(None, (self.after, self.check, self.birth)):
            for name, p in inspect.signature(function).parameters.items():
                if p.kind is p.KEYWORD_ONLY:
                    found[name] = None if p.default is p.empty else p.default
        return found

    def options(self, given: dict[str, Any]) -> dict[str, Any]:
        unknown = sorted(set(given) - set(self.defaults))
        if unknown:
            known = ", ".join(f"{k}={v!r}" for k, v in self.defaults.items()) or "none"
            raise GatecError(
                f"options that the pass {self.name} knows", found=", ".join(unknown), hint=f"its options: {known}"
            )
        return {**self.defaults, **given}

    def accepted(self, function: Callable[..., Any], values: dict[str, Any]) -> dict[str, Any]:
        """The part of `values` that `function` takes."""
        names = inspect.signature(function).parameters
        return {k: v for k, v in values.items() if k in names}

    def __repr__(self) -> str:
        return f"Gate({self.name})"

    def __deepcopy__(self, memo: Any) -> Gate:
        return self

    def __reduce__(self) -> Any:
        return _found_at, (self.home,)


def _found_at(home: str) -> Gate:
    gate = getattr(sys.modules.get(home) or __import__(home, fromlist=["GATE"]), "GATE", None)
    if not isinstance(gate, Gate):
        raise GatecError(
            f"the pass that this model was rewritten with, {home}.GATE", hint="import the file that declares it"
        )
    return gate
