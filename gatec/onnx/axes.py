"""Which dimensions of the inputs may differ in use, and inputs of other sizes made from these."""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

Tensors = dict[str, Tensor]


@dataclass(frozen=True)
class Axis:
    """One size that several inputs share, such as the batch, and the steps to try beyond it."""

    name: str
    kind: str
    members: tuple[tuple[str, int], ...]
    size: int
    steps: tuple[int, ...]


def axes_of(tensors: Tensors) -> list[Axis]:
    """Candidates by rank and type; whether the model allows them is for eager itself to say."""
    batch = next((t.shape[0] for t in tensors.values() if t.dim()), None)
    if batch is None:
        return []
    rows = tuple((name, 0) for name, t in tensors.items() if t.dim() and t.shape[0] == batch)
    axes = [Axis("batch", "batch", rows, batch, (1,))]
    for name, t in tensors.items():
        for kind, dim in inner(name, t):
            size = t.shape[dim]
            known = next((i for i, a in enumerate(axes) if (a.kind, a.size) == (kind, size)), None)
            if known is not None:
                axes[known] = replace(axes[known], members=(*axes[known].members, (name, dim)))
                continue
            steps = beyond(kind, size)
            axes.append(Axis(unused(kind, axes), kind, ((name, dim),), size, steps))
    return axes


def beyond(kind: str, size: int) -> tuple[int, ...]:
    """Pixels in whole patches; a length may be a width in truth, which no small step should hit."""
    if kind in ("height", "width"):
        return (32,)
    return (size + 1,) if kind == "length" else (size + 1, 8, 1)


def inner(name: str, t: Tensor) -> Iterator[tuple[str, int]]:
    """Dimensions behind the batch that may differ: tokens, frames, samples, sides of an image."""
    real, prefix = t.is_floating_point(), "decoder_" if name.startswith("decoder_") else ""
    if real and t.dim() == 4:
        yield from (("height", 2), ("width", 3))
    if t.dim() == 3 or (t.dim() == 2 and not real):
        yield f"{prefix}sequence", 1
    if real and t.dim() in (2, 3):
        yield "length", t.dim() - 1


def unused(kind: str, axes: list[Axis]) -> str:
    taken = [a.name for a in axes]
    return next(n for n in [kind, *(f"{kind}_{i}" for i in range(2, 99))] if n not in taken)


def resized(tensors: Tensors, sizes: dict[Axis, int]) -> Tensors:
    """The inputs at other sizes: rows and tokens repeat, masks grow by ones, no two rows agree."""
    out = dict(tensors)
    for axis, size in sizes.items():
        for name, dim in axis.members:
            out[name] = stretched(out[name], dim, size, mask="mask" in name)
    return out


def stretched(t: Tensor, dim: int, size: int, *, mask: bool) -> Tensor:
    old = t.shape[dim]
    out = t.index_select(dim, torch.arange(size, device=t.device) % old)
    if mask and size > old and dim:
        out.narrow(dim, old, size - old).fill_(1)
    if not dim and not mask and t.dim() > 1:
        # A repeated row would hide an export that mixes rows up.
        along = 0 if t.dim() < 4 else -1
        out = torch.stack([row.roll(i // old, along) for i, row in enumerate(out)])
    if t.is_floating_point() and not mask and not torch.equal(t, t.round()):
        # Nor should equal numbers be sorted, which each runtime does in its own order.
        again = (torch.arange(size) >= old).to(t.dtype).view(-1, *[1] * (t.dim() - 1 - dim % t.dim()))
        noise = torch.rand(out.shape, generator=torch.Generator().manual_seed(0), dtype=t.dtype)
        out = out * (1 - again * noise / 8).to(t.device)
    return out
