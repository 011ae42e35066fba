"""S[t] = decay[t] S[t-1] + k[t] v[t]' - write[t] (erase[t]' decay[t] S[t-1]), read by q[t]' S[t], in PyTorch's operators.

Time is cut into chunks. Inside a chunk steps meet in matrix products; what the erased parts owe to each other is one
triangular system. Towards the next chunk the whole of a chunk is one affine map of its state.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from gatec.linear_attention.decays import Decays, NoDecays, scaled

CHUNK = 64
Given = tuple[Tensor, Tensor, Tensor, Tensor | None, Tensor | None, Tensor | None, Tensor | None]


def chunked(q: Tensor, k: Tensor, v: Tensor, decay: Tensor | None, erase: Tensor | None, write: Tensor | None,
            state: Tensor | None) -> tuple[Tensor, Tensor]:  # fmt: skip
    """What is read at every step, and the last state; all leading dimensions are the same, and all types."""
    steps = v.shape[-2]
    if state is None:
        state = v.new_zeros(*v.shape[:-2], k.shape[-1], v.shape[-1])
    if not steps or not v.numel() or not k.numel():
        return v * 0, state.clone()
    size = min(CHUNK, 1 << (steps - 1).bit_length())
    q, k, v = (folded(x, size) for x in (q, k, v))
    decays = NoDecays() if decay is None else Decays(folded(decay, size, 1.0))
    read, found = scaled(q, decays.from_start), decays.scores(q, k) @ v
    kept, new = decays.from_start, scaled(k, decays.to_end).mT @ v
    maps = None
    if erase is not None and write is not None:
        erase, write = folded(erase, size), folded(write, size)
        owed, seen = pseudo_values(erase, write, k, v, decays)
        back = decays.scores(q, write)
        read, found = read - back @ owed, found - back @ seen
        leaves = scaled(write, decays.to_end).mT
        maps, new = -(leaves @ owed), new - leaves @ seen
    before, last = walked(state.flatten(0, -3) if state.ndim > 3 else state.reshape(-1, *state.shape[-2:]),
                          None if kept is None else kept[..., -1, :, None], maps, new)  # fmt: skip
    out = found + read @ before
    out = out.flatten(1, 2)[:, :steps]
    return out.reshape(*state.shape[:-2], steps, v.shape[-1]), last.reshape(state.shape)


def folded(x: Tensor, size: int, fill: float = 0.0) -> Tensor:
    """[heads, chunks, steps of a chunk, width], the last chunk filled up."""
    x = x.reshape(-1, *x.shape[-2:])
    more = -x.shape[-2] % size
    x = F.pad(x, (0, 0, 0, more), value=fill) if more else x
    return x.reshape(x.shape[0], -1, size, x.shape[-1])


def pseudo_values(
    erase: Tensor, write: Tensor, k: Tensor, v: Tensor, decays: Decays | NoDecays
) -> tuple[Tensor, Tensor]:
    """What each step erases: `owed` times the state before the chunk, and `seen` of the chunk itself."""
    own = decays.scores(erase, k).tril(-1) @ v
    right = torch.cat([scaled(erase, decays.from_start), own], -1)
    solved = torch.linalg.solve_triangular(decays.scores(erase, write), right, upper=False, unitriangular=True)
    owed, seen = solved.split([erase.shape[-1], v.shape[-1]], -1)
    return owed, seen


def walked(state: Tensor, kept: Tensor | None, maps: Tensor | None, new: Tensor) -> tuple[Tensor, Tensor]:
    """The state before each chunk, and the last one: kept * state + maps @ state + new, chunk by chunk."""
    before = []
    for i, piece in enumerate(new.unbind(1)):
        before.append(state)
        moved = piece if maps is None else torch.baddbmm(piece, maps[:, i], state)
        state = moved + state if kept is None else torch.addcmul(moved, kept[:, i], state)
    return torch.stack(before, 1), state


def stepped(q: Tensor, k: Tensor, v: Tensor, decay: Tensor | None, erase: Tensor | None, write: Tensor | None,
            state: Tensor | None) -> tuple[Tensor, Tensor]:  # fmt: skip
    """The same, step by step: where decays grow beyond what their products can hold."""
    if state is None:
        state = v.new_zeros(*v.shape[:-2], k.shape[-1], v.shape[-1])
    found = []
    for t in range(v.shape[-2]):
        if decay is not None:
            state = state * decay[..., t, :, None]
        new = k[..., t, :, None] * v[..., t, None, :]
        if erase is not None and write is not None:
            new = new - write[..., t, :, None] * (erase[..., t, None, :] @ state)
        state = state + new
        found.append(q[..., t, None, :] @ state)
    return torch.cat(found, -2) if found else v * 0, state
