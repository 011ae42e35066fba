"""Routers of a converted model fitted to data: layer by layer, each on what the layers before it now give."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

import torch
from rich.console import Console
from rich.progress import track
from torch import Tensor, nn
from torch._subclasses import FakeTensor

from gatec.capture import evaluating, unit_of, untouched
from gatec.errors import GatecError
from gatec.inputs import batches
from gatec.moe.blocks import Reached
from gatec.moe.fitted import Fit, Options
from gatec.moe.resuming import keep, kept, keyed
from gatec.moe.router import Router
from gatec.moe.splits import Split
from gatec.moe.streaming import Stream, drawn

Model = TypeVar("Model", bound=nn.Module)


BATCHES = 256  # of the data that are kept, drawn from all of them alike where there are more


def calibrate(
    model: Model, data: Iterable[Any], *, steps: int = 1000, rate: float = 1e-2, tokens: int = 32768,
    active: float | None = None, seed: int = 0, folder: str | Path | None = None,
    progress: Callable[[str], Any] | bool = False,
) -> Model:  # fmt: skip
    """Fit the routers of a converted model, in place: `convert(model, "moe", ...)`, then this.

    A router learns how far each expert's output is from what stands in for it; a stand-in (`stand_in=True` of the pass) is
    solved for, a dynamic router's threshold searched. The data is gone through once. Where blocks stand in a row, as in most
    models, each runs twice for every batch, and what is kept of a batch is what flows from one block to the next; what
    stands outside of a row is reached by running the model from its start again.

    data      batches as `convert` takes inputs; of more than 256, so many are kept, drawn from all alike
    steps     of Adam for each router, with the learning rate `rate`
    tokens    how many are held of a layer's inputs, drawn from all batches alike
    active    the average share of experts that dynamic routers are to run; by default top_k / experts
    progress  called with each layer's name; True shows a bar on stderr
    folder    keeps each layer's result, so that an interrupted fit resumes: equal weights, data and options are not fitted again
    """
    options = Options(steps, rate, active, seed)
    given = drawn(batches(data), BATCHES, seed)
    if not given:
        raise GatecError("batches to fit routers on", found="none", hint="gatec.calibrate(model, [batch, ...])")
    before = ""
    with evaluating(model):
        stream = Stream(model, given)
        for site in told(sites(model), progress):
            x = inputs(stream, site, tokens, seed)
            before = keyed(site, x, options, before)
            fit(site, x, options, Path(folder) if folder is not None else None, before)
    return model


def fit(site: Split, x: Tensor, options: Options, folder: Path | None, key: str) -> None:
    if folder is None:
        Fit(site, x, options).run()
    elif not kept(site, folder, key):
        Fit(site, x, options).run()
        keep(site, folder, key)


def sites(model: nn.Module) -> list[Split]:
    """Every split MLP with a router, in the order of the model's modules."""
    found = []
    for path, module in model.named_modules():
        unit = unit_of(module)
        for rewrite in unit.edits if unit else ():
            router = rewrite.added.get("router")
            if router and isinstance(module.get_submodule(router), Router) and module.get_submodule(router).whole:
                found.append(Split(rewrite.site_under(path), module, rewrite))
    if not found:
        raise GatecError(
            f"split layers with routers in {type(model).__name__}", found="none", hint='gatec.convert(model, "moe")'
        )
    return found


def told(found: list[Split], progress: Callable[[str], Any] | bool) -> Iterator[Split]:
    """The layers, each announced before it is fitted."""
    if progress is True:
        screen = Console(stderr=True)
        yield from track(found, "routers", console=screen, transient=True, disable=not screen.is_terminal)
        return
    for site in found:
        if callable(progress):
            progress(site.name)
        yield site


def inputs(stream: Stream, site: Split, tokens: int, seed: int) -> Tensor:
    """What flows into the layer: at most `tokens` rows, as many of each batch."""
    seen: list[Tensor] = []
    share = -(-tokens // len(stream.given))
    draw = torch.Generator().manual_seed(seed)

    def take(_: nn.Module, args: tuple[Tensor, ...]) -> None:
        if isinstance(args[0], FakeTensor):  # the call is being captured, and runs after that
            return
        rows = torch.randperm(len(args[0]), generator=draw)[:share].sort().values
        seen.append(args[0].detach()[rows.to(args[0].device)].clone())
        raise Reached

    calls = stream.calls(site.router)
    handle = site.router.register_forward_pre_hook(take)
    try:
        with torch.no_grad(), untouched(stream.model):
            for call in calls:
                with suppress(Reached):
                    call()
    finally:
        handle.remove()
    if not seen:
        raise GatecError("data that reaches the layer", found="its router was never called", where=site.name,
                         hint="gatec.calibrate(model, data) with batches that use it")  # fmt: skip
    x = torch.cat(seen)
    if not x.isfinite().all():
        raise GatecError("finite activations of the calibration data", found="NaN or infinity", where=site.name,
                         hint="look at the batches, or run the model in float32")  # fmt: skip
    return x
