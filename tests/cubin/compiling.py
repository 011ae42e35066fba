"""A process that compiles whatever it is asked for: a line of JSON for a module, one with its binaries for an answer."""

import json
import sys
import traceback
from dataclasses import asdict
from pathlib import Path
from types import ModuleType, SimpleNamespace

import torch

from gatec.aot import compiled, operand, read

# What gatec.aot compiles is a module whose backward takes a gradient and the operands.


def as_it_is(module: ModuleType):
    yield {}, module


def scan(module: ModuleType):
    """Its backward takes the states too."""
    yield {}, whole(module, lambda grad, *operands: module.backward(grad, grad, *operands))


def recurrence(module: ModuleType):
    """Its backward takes the gradient of the last state too."""
    yield {}, whole(module, lambda grads, *operands: module.backward(*grads, *operands))


def gemm(module: ModuleType, every: bool):
    """Its forward with one or with every list of tiles; backward does not depend on them."""
    for tiles in list(module.TILES)[: None if every else 1]:
        one = SimpleNamespace(**vars(module))
        one.forward = lambda *xs, tiles=tiles: module.forward_keeping(*xs, tiles=tiles)[0]
        if tiles != module.FIRST:
            one.backward = lambda *xs: None
        yield {"tiles": tiles}, one


def grouped(module: ModuleType, config: str):
    """With a size of tiles, if it has any; a router is followed by the sort of what it chose."""
    own = {"config": config} if config else {}

    def forward(*operands):
        if hasattr(module, "route"):
            module.sorted_pairs(module.chosen(*operands)[1], 64)
        return module.forward(*operands, **own)

    def backward(grad, *operands):
        return module.backward(grad, *operands, **(own if hasattr(module, "forward_keeping") else {}))

    yield {"config": config}, whole(module, backward, forward)


def whole(module: ModuleType, backward, forward=None) -> SimpleNamespace:
    return SimpleNamespace(**{**vars(module), "forward": forward or module.forward, "backward": backward})


FORMS = {f.__name__: f for f in (as_it_is, scan, recurrence, gemm, grouped)}


def answer(job: dict) -> list[dict]:
    module = read(Path(job["file"]))
    types = [getattr(torch, t) for t in job["types"]] or module.DTYPES
    operands = [operand(s, t) for s, t in zip(job["shapes"], types, strict=True)]
    forms = FORMS[job["form"]](module, **job["options"])
    return [asdict(b) | told for told, form in forms for b in compiled(form, operands, job["target"])]


if __name__ == "__main__":
    for line in sys.stdin:
        try:
            found: object = answer(json.loads(line))
        except Exception:
            found = traceback.format_exc()
        print(json.dumps(found), flush=True)
