"""The backend itself: options, the inner backend that runs what is left of a graph, and a record of every graph."""

from __future__ import annotations

import sys
import traceback
from collections.abc import Callable
from typing import Any

import torch
from torch import fx
from torch._dynamo import list_backends, lookup_backend

from gatec import settings
from gatec.backend.compiled import Compilations, Compiled, fused, named
from gatec.errors import GatecError

INDUCTOR = "left to inductor, which fuses it; everywhere=True puts gatec's op in its place"
Run = Callable[..., Any]


class Backend:
    """`torch.compile(model, backend=gatec.backend, options={"inner": "inductor", "everywhere": True})`.

    Every graph that Dynamo captures is searched for gates; on CUDA the regions around them become ops with generated
    kernels, forward and backward, and `inner` (a backend's name or a function, default "eager") runs the graph. On a CPU,
    and before inductor, regions stay as they are unless `everywhere`. Options and the mode that are not gatec's go to
    inductor. A graph that gatec cannot read runs as it was captured.
    """

    __name__ = "gatec"

    def __init__(self) -> None:
        self._graphs: list[Compiled] = []

    def __call__(
        self, gm: fx.GraphModule, inputs: list[Any], *, mode: str | None = None, options: dict[str, Any] | None = None
    ) -> Any:
        rest = dict(options or {})
        inner, everywhere = rest.pop("inner", "eager"), bool(rest.pop("everywhere", False))
        run = _inner(inner, mode, rest)
        self._graphs.append(_compiled(gm, everywhere, INDUCTOR if inner == "inductor" else ""))
        if settings.DEBUG:
            sys.stderr.write(f"{self._graphs[-1]}\n")
        return run(gm, inputs)

    def __repr__(self) -> str:
        return "gatec.backend"

    def __reduce__(self) -> str:
        return "backend"  # there is one: a copied or unpickled model reports to it too

    def report(self) -> Compilations:
        """Every graph compiled since the last `torch._dynamo.reset()`: its gates, what was fused, and why not."""
        return Compilations(tuple(self._graphs))

    def reset(self) -> None:
        """Forget the report. Dynamo calls this when it forgets its graphs."""
        self._graphs.clear()


backend = Backend()


def _compiled(gm: fx.GraphModule, everywhere: bool, leave: str) -> Compiled:
    try:
        return fused(gm, everywhere, leave)
    except Exception as e:  # whatever goes wrong, the user's graph runs, and the report says that it was not read
        if settings.DEBUG:
            traceback.print_exception(e)
        return Compiled(named(gm), missed=f"{type(e).__name__}: {e}")


def _inner(inner: Any, mode: str | None, rest: dict[str, Any]) -> Run:
    if inner == "inductor":
        found: Run = torch._TorchCompileInductorWrapper(mode, rest, None)
        return found
    if rest or mode not in (None, "default"):
        raise GatecError(
            "options that gatec.backend has",
            found=", ".join([*rest, *([f"mode={mode!r}"] if mode else [])]),
            hint='"inner" and "everywhere"; with "inner": "inductor" also the options and the modes of inductor',
        )
    if callable(inner) and not isinstance(inner, Backend):
        return inner  # type: ignore[no-any-return]  # whatever is called like a backend
    if inner == "gatec" or inner not in list_backends(None):
        raise GatecError("an inner backend that torch.compile knows", found=repr(inner),
                         hint=", ".join(b for b in list_backends() if b != "gatec"))  # fmt: skip
    run: Run = lookup_backend(inner)
    return run
