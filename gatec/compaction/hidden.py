"""Hidden units whose gate is closed, taken out of the layers around them."""

from __future__ import annotations

from torch import Tensor

from gatec.compaction.kind import Gated, Kind
from gatec.errors import Refused, first_line
from gatec.history import remember
from gatec.program import Edit, Program
from gatec.rewrite import Undo, back
from gatec.shrink import HIDDEN, alone, named, remove, site_of
from gatec.verify import Probe


def take(program: Program, gated: list[Gated], undo: Undo) -> list[Edit]:
    edits = [_unit(program, one, undo) for one in gated]
    sites = sorted(e.site for e in edits if e.verdict == "put")
    if sites:
        remember(program.model, {"compact": sites}, undo)
    return edits


def _unit(program: Program, gated: Gated, undo: Undo) -> Edit:
    path, unit, rewrite = gated
    site, name = site_of(program.model, path, rewrite, program.names), named(path, rewrite)
    steps: Undo = []
    try:
        alone(site, unit, rewrite)
        probe = Probe.of(site.module, program.calls[path][0])
        if probe is None:
            raise Refused("its call cannot be repeated alone, so that the result could not be proved")
        assert rewrite.gate.closes is not None
        closed: Tensor = rewrite.gate.closes(site)
        remove(site, unit, rewrite, closed, steps)
        drift = probe.drift(site.module)
        if not drift <= probe.rounding:
            raise Refused(f"the result would differ from the gated model by {drift:.1e}")
    except (Refused, RuntimeError, ValueError) as e:
        back(steps)
        return Edit("compact", name, "left", first_line(e))
    undo.extend(steps)
    words = f"{int(closed.sum())} of {closed.numel()} units removed, drift {drift:.1e}{probe.note}"
    return Edit("compact", name, "put", words, drift)


KIND = Kind(HIDDEN, take)
