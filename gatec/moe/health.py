"""health(): how evenly experts are used and which of them nobody asks, how open channel gates are and what they learn."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from torch import nn

from gatec.errors import GatecError
from gatec.moe.router import Router
from gatec.pruning import channel_gates, has_gates

CROWDED = 4.0  # times the even share


@dataclass(frozen=True)
class Usage:
    """Of one router: the share of each expert in all token-expert pairs, and how many pairs there were."""

    path: str
    shares: tuple[float, ...]
    pairs: int

    @property
    def dead(self) -> tuple[int, ...]:
        """Experts that no token chose."""
        return tuple(e for e, share in enumerate(self.shares) if share == 0)

    @property
    def warnings(self) -> tuple[str, ...]:
        if not self.pairs:
            return ("no token has come by yet",)
        words = []
        if self.dead:
            words.append(f"nobody chose {', '.join(map(str, self.dead[:8]))}{', ...' if len(self.dead) > 8 else ''}")
        most = max(self.shares) * len(self.shares)
        if most > CROWDED:
            words.append(f"expert {self.shares.index(max(self.shares))} has {most:.1f} times its even share")
        return tuple(words)

    def __str__(self) -> str:
        said = "; ".join(self.warnings) or "well"
        least, most = min(self.shares), max(self.shares)
        return f"{self.path:<40} {len(self.shares)} experts, {100 * least:.1f} to {100 * most:.1f} % of {self.pairs} pairs: {said}"


@dataclass(frozen=True)
class Openness:
    """Of one channel gate: how many of its slots are open, and whether a gradient has reached it."""

    group: str
    open: int
    size: int
    learns: bool

    @property
    def warnings(self) -> tuple[str, ...]:
        shut = ("all of its slots are closed",) if not self.open else ()
        return shut if self.learns else (*shut, "no gradient has reached it yet")

    def __str__(self) -> str:
        return f"{self.group:<40} {self.open} of {self.size} slots are open: {'; '.join(self.warnings) or 'well'}"


@dataclass(frozen=True)
class Health:
    """Printable; `usage` is one entry for each router, `gates` one for each channel gate."""

    usage: tuple[Usage, ...]
    gates: tuple[Openness, ...] = ()

    @property
    def well(self) -> bool:
        return not any(u.warnings for u in self.usage) and not any(g.warnings for g in self.gates)

    def __str__(self) -> str:
        return "\n".join(map(str, (*self.usage, *self.gates)))


def health(model: nn.Module) -> Health:
    """How experts were used since the model was made or `gatec.watching(model)` began, and how open channel gates are."""
    found, gates = [], _gates(model) if has_gates(model) else ()
    for path, router in (
        routers(model).items() if not gates or any(isinstance(m, Router) for m in model.modules()) else ()
    ):
        pairs = int(router.seen.sum())
        shares = (router.seen / max(pairs, 1)).tolist()
        found.append(Usage(path, tuple(shares), pairs))
    return Health(tuple(found), gates)


def _gates(model: nn.Module) -> tuple[Openness, ...]:
    return tuple(
        Openness(
            name, int((~gate.closed()).sum()), gate.size, bool(gate.weight.grad is not None and gate.weight.grad.any())
        )
        for name, gate in channel_gates(model).items()
    )


@contextmanager
def watching(model: nn.Module) -> Iterator[None]:
    """Inside, routers count from zero in evaluation too; in training they always do."""
    watched = routers(model).values()
    before = [r.watched for r in watched]
    try:
        for r in watched:
            r.watched = True
            r.seen.zero_()
        yield
    finally:
        for r, old in zip(watched, before, strict=True):
            r.watched = old


def routers(model: nn.Module) -> dict[str, Router]:
    found = {path: m for path, m in model.named_modules() if isinstance(m, Router)}
    if not found:
        raise GatecError(
            "a model with routers", found=f"none in {type(model).__name__}", hint='gatec.convert(model, "moe")'
        )
    return found
