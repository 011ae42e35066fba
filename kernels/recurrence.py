"""Recurrence: S[t] = decay[t] S[t-1] + k[t] v[t]', read by q[t]' S[t], with a matrix of state for each head.

Only states are walked, from chunk to chunk, each tile of them by a program of its own; what a chunk reads and its gradients are
computed in all chunks at once, from the states in front of them and, backward, from the gradients of those behind them.
Inside a chunk the decays between two steps are products that grow from the last step to the first: nothing is divided, and
no sums of logarithms are subtracted, so a gate that closes is exact. Decays are given as logarithms: one for each key, one
that all keys share, or none. Products are of float32: three of tf32 on NVIDIA.
"""

import torch

from gatec.kernel import Kernel
from gatec.kernels.chunked import kernels
from gatec.kernels.heads import HEAD, LAUNCHERS, TILES
from gatec.kernels.tile import CHECKS

CHUNK = 16  # steps; the least that products take
LONGEST = 65535 * CHUNK  # steps; chunks are a second dimension of a grid
FLOATS = (torch.float32, torch.float16, torch.bfloat16)


def render(kind: str, dtypes: tuple[torch.dtype, ...], out: torch.dtype, state: bool) -> Kernel:
    """Of operands q, k, v, then the decay and the first state where there are such."""
    names = ["q", "k", "v", *(["decay"] if kind != "none" else []), *(["state"] if state else [])]
    name = f"recurrence_{kind}"
    head = HEAD.format(name=name, origin="gatec::linear_attention", dtypes=dtypes, out=out, chunk=CHUNK)
    given = {n: n if n in names else "None" for n in ("decay", "state")}
    launchers = LAUNCHERS.format(operands=", ".join(names), keyed=kind == "keyed", count=len(names), **given)
    parts = [head, TILES, *kernels(kind), CHECKS, launchers]
    return Kernel(name, "\n\n\n".join(part.strip("\n") for part in parts) + "\n")
