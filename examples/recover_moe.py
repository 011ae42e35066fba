"""A dense language model into a sparse mixture, and its loss won back, step by step.

train      a small model of bytes, on Python's standard library
sparsify   fine-tune it so that fewer hidden units are active at once (square Hoyer)
convert    split its MLPs into 16 experts of which 4 run, and fit routers and stand-ins
distil     every layer for itself learns what the dense layer gave
finetune   the whole model, on the text

python examples/recover_moe.py [steps of training] [steps of each repair]
"""

from __future__ import annotations

import copy
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import gatec
from gatec.bench.small.model import LENGTH, Layer, held_out_loss, train, trained
from gatec.bench.small.text import Text, standard_library

EXPERTS, CHOSEN, BATCH = 16, 4, 16


def batches(text: Text, steps: int, seed: int) -> Iterator[Tensor]:
    return text.batches(steps, batch=BATCH, length=LENGTH, seed=seed)


def layers(model: nn.Module) -> list[Layer]:
    return [m for m in model.modules() if isinstance(m, Layer)]


# -- fewer active units ----------------------------------------------------------------------------------------------


def square_hoyer(hidden: Tensor) -> Tensor:
    """(sum |h|)^2 / sum h^2 over the number of units: 1 where all are equally active, 1 / units where one is."""
    size = hidden.abs()
    return (size.sum(-1).square() / size.square().sum(-1).clamp_min(1e-9)).mean() / hidden.shape[-1]


@contextmanager
def watched(model: nn.Module) -> Iterator[list[Tensor]]:
    """What flows into each `down`, of the last forward."""
    seen: list[Tensor] = []
    downs = [layer.mlp.get_submodule("down") for layer in layers(model)]
    hooks = [down.register_forward_pre_hook(lambda _, args: seen.append(args[0])) for down in downs]
    yield seen
    for hook in hooks:
        hook.remove()


def sparsify(model: nn.Module, text: Text, steps: int, weight: float = 0.2) -> nn.Module:
    model = copy.deepcopy(model)
    with watched(model) as seen:

        def penalty() -> Tensor:
            found = torch.stack([square_hoyer(h) for h in seen]).mean()
            seen.clear()
            return weight * found

        return train(model, batches(text, steps, 1), steps=steps, rate=5e-4, extra=penalty)


# -- what routing lost -----------------------------------------------------------------------------------------------


def distil(model: nn.Module, dense: nn.Module, text: Text, steps: int, rate: float = 5e-4) -> nn.Module:
    """Each sparse MLP learns to give what the dense one gives on the dense model's own activations."""
    pairs = list(zip(layers(model), layers(dense), strict=True))
    optimizer = torch.optim.AdamW([p for sparse, _ in pairs for p in sparse.mlp.parameters()], rate, weight_decay=0.0)
    calls: list[tuple[Tensor, Tensor]] = []
    hooks = [d.mlp.register_forward_hook(lambda _, args, out: calls.append((args[0], out))) for _, d in pairs]
    model.train()
    for tokens in batches(text, steps, 2):
        calls.clear()
        with torch.no_grad():
            dense(tokens[:, :-1])
        losses = [
            F.mse_loss(sparse.mlp(x), y) / y.square().mean() for (sparse, _), (x, y) in zip(pairs, calls, strict=True)
        ]
        optimizer.zero_grad()
        torch.stack(losses).sum().backward()
        optimizer.step()
    for hook in hooks:
        hook.remove()
    return model.eval()


def convert(model: nn.Module, text: Text, steps: int) -> nn.Module:
    data = [t[:, :-1] for t in batches(text, 16, 3)]
    made = gatec.convert(
        model,
        "moe",
        experts=EXPERTS,
        top_k=CHOSEN,
        hidden=64,
        stand_in=True,
        partition="routing",
        calibration=data,
        inputs=data[0],
    )
    return gatec.calibrate(made, data, steps=steps)


def main(steps: int = 300, repair: int = 100, text: Text | None = None, held_out: int = 12) -> dict[str, float]:
    text = text or standard_library()
    torch.manual_seed(0)
    losses = {}

    def note(stage: str, model: nn.Module) -> nn.Module:
        losses[stage] = held_out_loss(model, text, held_out)
        print(f"{stage:<10} {losses[stage]:.4f}")
        return model

    dense = note("dense", trained("relu", text, steps=steps))
    note("converted", convert(dense, text, 3 * repair))
    sparse = note("sparsified", sparsify(dense, text, repair))
    model = note("and split", convert(sparse, text, 3 * repair))
    note("distilled", distil(model, sparse, text, repair))
    note("fine-tuned", train(model, batches(text, repair, 4), steps=repair, rate=5e-4))
    return losses


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
