"""Blocks whose gate is closed, taken out of their chains; open ones are the plain block again."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from torch import nn

from gatec.blocks import BLOCKS, PASSED, pass_by, removed, says_so, shifted
from gatec.compaction.cached import Cached
from gatec.compaction.kind import Gated, Kind
from gatec.errors import Refused, in_short
from gatec.history import history, recall, without
from gatec.program import Edit, Program
from gatec.rewrite import Undo, back, take_out
from gatec.shrink import site_of
from gatec.site import CONTAINERS
from gatec.verify import Probe, distance, forward

OPEN, TAKEN, KEPT = "open: the plain block again", "the block is removed", "the block hands on what it takes"
UNSAID = "; its config does not say so: gatec.save keeps this model, save_pretrained would not"


def take(program: Program, gated: list[Gated], undo: Undo) -> list[Edit]:
    """All at once where that is exact, else one after the other."""
    orders = {path: list(module._modules) for path, module in program.model.named_modules()}
    work = Work(program, Probe.of(program.model, program.calls[""][0]), Cached.of(program))
    left = {g[0]: why for g in gated if (why := work.obstacle(g))}
    free = [g for g in gated if g[0] not in left]
    done = work.together(free, undo)
    for one in reversed(free) if done is None else ():
        done = {**(done or {}), **work.alone(one, undo, left)}
    done = done or {}
    _remembered(program.model, [g for g in free if g[0] in done], done, orders)
    said = UNSAID if any(way == TAKEN for way, _ in done.values()) and not says_so(program) else ""
    return [_edit(g[0], done, left, work.note, said) for g in gated]


@dataclass
class Work:
    """A model whose blocks are being removed, and what it returned before."""

    program: Program
    probe: Probe | None
    cached: Cached | None

    @property
    def note(self) -> str:
        return self.probe.note if self.probe else " (in the model's own dtype)"

    def obstacle(self, gated: Gated) -> str:
        """Why the block cannot be taken out, whatever its chain does; "" where nothing is in the way."""
        path, unit, rewrite = gated
        model, block = self.program.model, self.program.module(path)
        names = [n for n, m in model.named_modules(remove_duplicate=False) if m is block]
        others = [r.name for r in unit.outer if r is not rewrite]
        if len(names) > 1:
            return f"it is also the block at {next(n for n in names if n != path)}"
        if not path or not isinstance(model.get_submodule(path.rpartition(".")[0]), CONTAINERS):
            return "it is in no list of blocks"
        if others and self.closed(gated):
            return f"{others[0]} was put around the same block"
        if block._forward_hooks or block._forward_pre_hooks:
            return "hooks of its own run when it is called"
        return ""

    def closed(self, gated: Gated) -> bool:
        path, _, rewrite = gated
        assert rewrite.gate.closes is not None
        return bool(rewrite.gate.closes(site_of(self.program.model, path, rewrite, self.program.names)))

    def together(self, gated: list[Gated], undo: Undo) -> dict[str, tuple[str, float]] | None:
        ways = {g[0]: TAKEN if self.closed(g) else OPEN for g in gated}
        try:
            drift = self.changed(gated, ways, undo)
        except Exception:  # whatever the model raises without them: then one after the other, each with its words
            return None
        return {path: (way, drift) for path, way in ways.items()}

    def alone(self, gated: Gated, undo: Undo, left: dict[str, str]) -> dict[str, tuple[str, float]]:
        path, why = gated[0], []
        for way in (TAKEN, KEPT) if self.closed(gated) else (OPEN,):
            try:
                return {path: (way, self.changed([gated], {path: way}, undo))}
            except Refused as e:
                why.append(str(e))
            except Exception as e:
                why.append(f"without it the model raises {in_short(e)}")
        left[path] = "; and ".join(dict.fromkeys(why))
        return {}

    def changed(self, gated: list[Gated], ways: dict[str, str], undo: Undo) -> float:
        """Change the model, and measure. Whatever is raised, it is as it was."""
        model, steps = self.program.model, []  # type: tuple[nn.Module, Undo]
        try:
            for path, unit, rewrite in gated:
                take_out(model.get_submodule(path), unit, [rewrite], steps)
                if ways[path] == KEPT:
                    pass_by(model, path, self.program.calls[path][0], steps)
            removed(model, [path for path, way in ways.items() if way == TAKEN], steps)
            drift = self.drift(model)
        except BaseException:
            back(steps)
            raise
        undo.extend(steps)
        return drift

    def drift(self, model: nn.Module) -> float:
        if self.probe is not None:
            moved, rounding = self.probe.drift(model), self.probe.rounding
        else:
            moved, rounding = distance(forward(model, self.program), self.program.calls[""][0].output), 0.0
        if not moved <= rounding:
            raise Refused(f"the result would differ from the gated model by {moved:.1e}")
        if self.cached is not None and not self.cached.drift(model) <= self.cached.rounding:
            raise Refused("what is decoded with a cache would differ from the gated model")
        return moved


def _remembered(model: nn.Module, gated: Iterable[Gated], done: dict[str, tuple[str, float]],
                orders: dict[str, list[str]]) -> None:  # fmt: skip
    """The recipe without the gates that are gone, and with the removed blocks."""
    without(model, [(rewrite.name, rewrite.site_under(path)) for path, _, rewrite in gated])
    for kind, wanted in ((PASSED, KEPT), (BLOCKS, TAKEN)):
        paths = [path for path, (way, _) in done.items() if way == wanted]
        if paths:
            outer = {path.rpartition(".")[0] for path in paths}
            recall(model, shifted(history(model), kind, paths, {p: orders[p] for p in outer}))


def _edit(path: str, done: dict[str, tuple[str, float]], left: dict[str, str], note: str, said: str) -> Edit:
    if path not in done:
        return Edit("compact", path, "left", left[path])
    way, drift = done[path]
    return Edit("compact", path, "put", f"{way}, drift {drift:.1e}{note}{said if way == TAKEN else ''}", drift)


KIND = Kind("blocks", take)
