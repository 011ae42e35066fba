"""Recurrence: S[t] = decay[t] S[t-1] + k[t] v[t]', read by q[t]' S[t], with a matrix of state for each head.

With a delta rule a step also takes away write[t] (erase[t]' decay[t] S[t-1]).

Only states are walked, from chunk to chunk, each tile of them by a program of its own; what a chunk reads and its gradients are
computed in all chunks at once, from the states in front of them and, backward, from the gradients of those behind them.
Inside a chunk the decays between two steps are products that grow from the last step to the first: nothing is divided, and
no sums of logarithms are subtracted, so a gate that closes is exact. Decays are given as logarithms: one for each key, one
that all keys share, or none. Products are of float32: three of tf32 on NVIDIA.
"""

import torch

from gatec.kernel import Kernel
from gatec.kernels.chunk_launchers import DELTA, PLAIN
from gatec.kernels.chunk_pull import pull
from gatec.kernels.chunk_read import read_states
from gatec.kernels.chunk_solve import solve
from gatec.kernels.chunk_walk import walk
from gatec.kernels.chunked import helpers
from gatec.kernels.heads import HEAD, LAUNCH, TILES
from gatec.kernels.tile import CHECKS

CHUNK = 16  # steps; the least that products take
LONGEST = 65535 * CHUNK  # steps; chunks are a second dimension of a grid
FLOATS = (torch.float32, torch.float16, torch.bfloat16)


def render(kind: str, dtypes: tuple[torch.dtype, ...], out: torch.dtype, state: bool, delta: bool = False) -> Kernel:
    """Of operands q, k, v, then the decay, what a delta rule erases and writes, and the first state where there are such."""
    there = {"decay": kind != "none", "erase": delta, "write": delta, "state": state}
    names = ["q", "k", "v", *(n for n, given in there.items() if given)]
    name = f"delta_{kind}" if delta else f"recurrence_{kind}"
    head = HEAD.format(name=name, origin="gatec::linear_attention", dtypes=dtypes, out=out, chunk=CHUNK)
    given = {n: n if there[n] else "None" for n in ("decay", "state")}
    launchers = (DELTA if delta else PLAIN).format(
        operands=", ".join(names), keyed=kind == "keyed", count=len(names), **given
    )
    kernels = [walk(kind, delta), read_states(kind, delta), pull(kind, delta)]
    solved = [solve(kind)] if delta else []
    parts = [head, TILES, *helpers(kind), *solved, *kernels, CHECKS, LAUNCH, launchers]
    return Kernel(name, "\n\n\n".join(part.strip("\n") for part in parts) + "\n")
