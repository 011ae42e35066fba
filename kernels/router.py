"""Routers: scores of a row, its best columns and their weights in one launch; the sort of what they chose in a second.

The score is a generated function of whole rows (a softmax, a sigmoid). A bias may move the choice without touching the
weights. Ties go to the first column, NaN counts as the largest, and no column is chosen twice.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import fx

from gatec.errors import GatecError
from gatec.kernel import Kernel
from gatec.kernels.functions import needed
from gatec.kernels.groups import SORT, SORTED
from gatec.kernels.pointwise import HEAD
from gatec.kernels.spelling import spell

COLUMNS, CHOICES = 512, 16  # the widest row, the most choices

ROUTE = """
@triton.jit(do_not_specialize=["rows"])
def route(
    weights_ptr, chosen_ptr, logits_ptr, bias_ptr, logits_at, rows,
    ROWS: tl.constexpr,
    COLS: tl.constexpr,
    SLOTS: tl.constexpr,
):
    row = (tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS))[:, None]
    col = tl.arange(0, COLS)[None, :]
    slot = tl.arange(0, SLOTS)[None, :]
    inside = col < COLUMNS
    logits = tl.load(logits_ptr + row * logits_at[0] + col.to(tl.int64) * logits_at[1], mask=(row < rows) & inside, other=0.0)
    logits = logits.to(tl.float32)
{lines}
    key = scores
    if bias_ptr is not None:
        key += tl.load(bias_ptr + col, mask=inside, other=0.0).to(tl.float32)
    key = tl.where(key != key, float("inf"), key)
    free = inside & (row < rows)
{groups}
    best = tl.zeros((ROWS, SLOTS), tl.float32)
    where = tl.zeros((ROWS, SLOTS), tl.int32)
    for j in tl.static_range(CHOICES):
        top = tl.max(tl.where(free, key, float("-inf")), 1)[:, None]
        first = tl.min(tl.where(free & (key == top), col, COLS - 1), 1)[:, None]
        score = tl.sum(tl.where(col == first, scores, 0.0), 1)[:, None]
        best = tl.where(slot == j, score, best)
        where = tl.where(slot == j, first, where)
        free = free & (col != first)
    if NORMALISED:
        best = best / (tl.sum(best, 1)[:, None] + EPS)
    out = row * CHOICES + slot
    kept = (row < rows) & (slot < CHOICES)
    tl.store(weights_ptr + out, (best * FACTOR).to(weights_ptr.dtype.element_ty), mask=kept)
    tl.store(chosen_ptr + out, where.to(chosen_ptr.dtype.element_ty), mask=kept)
"""

# A group is worth the sum of its best columns; what stands in no group that is kept counts as the last constant.
GROUPED = """
    group = col // (COLUMNS // GROUPS)
    worth = tl.zeros((ROWS, COLS), tl.float32)
    for g in tl.static_range(GROUPS):
        left = free & (group == g)
        for _ in tl.static_range(BEST):
            top = tl.max(tl.where(left, key, float("-inf")), 1)[:, None]
            first = tl.min(tl.where(left & (key == top), col, COLS - 1), 1)[:, None]
            worth += tl.where(group == g, top, 0.0)
            left = left & (col != first)
    open_groups = free
    for _ in tl.static_range(KEPT):
        top = tl.max(tl.where(open_groups, worth, float("-inf")), 1)[:, None]
        best_group = tl.min(tl.where(open_groups & (worth == top), group, GROUPS - 1), 1)[:, None]
        open_groups = open_groups & (group != best_group)
    key = tl.where(open_groups, FILL, key)
"""

PULL = """
@triton.jit(do_not_specialize=["rows"])
def pull(
    logits_grad_ptr, grad_ptr, chosen_ptr, logits_ptr, logits_at, grad_at, rows,
    ROWS: tl.constexpr,
    COLS: tl.constexpr,
    SLOTS: tl.constexpr,
):
    row = (tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS))[:, None]
    col = tl.arange(0, COLS)[None, :]
    inside = col < COLUMNS
    logits = tl.load(logits_ptr + row * logits_at[0] + col.to(tl.int64) * logits_at[1], mask=(row < rows) & inside, other=0.0)
    logits = logits.to(tl.float32)
{lines}
    # Each column is chosen once at most, so what flows back to the scores is put there and not added.
    picked = tl.zeros((ROWS, COLS), tl.float32)
    chosen = tl.full((ROWS, COLS), False, tl.int1)
    for j in tl.static_range(CHOICES):
        choice = tl.load(chosen_ptr + row * CHOICES + j, mask=row < rows, other=-1)
        each = tl.load(grad_ptr + row * grad_at[0] + j * grad_at[1], mask=row < rows, other=0.0).to(tl.float32)
        picked = tl.where(col == choice, each * FACTOR, picked)
        chosen = chosen | (col == choice)
    if NORMALISED:
        share = tl.where(chosen, scores, 0.0)
        total = tl.sum(share, 1)[:, None] + EPS
        mean = tl.sum(picked * share, 1)[:, None] / total
        picked = tl.where(chosen, (picked - mean) / total, 0.0)
{back}
    at = logits_grad_ptr + row * COLUMNS + col
    tl.store(at, ({result}).to(logits_grad_ptr.dtype.element_ty), mask=(row < rows) & inside)
"""

LAUNCH = '''
def warps():
    """Of 64 or 32 threads."""
    return 2 if torch.version.hip else 4


def tile():
    cols = triton.next_power_of_2(COLUMNS.value)
    return {{"ROWS": max(1, 1024 // cols), "COLS": cols, "SLOTS": triton.next_power_of_2(CHOICES.value)}}


def rows_of(logits):
    if logits.dtype != DTYPES[0] or logits.shape[-1] != COLUMNS.value:
        raise TypeError(f"this kernel was generated for {{COLUMNS.value}} columns of {{DTYPES[0]}}")
    return logits.reshape(-1, COLUMNS.value)


def forward(logits{bias}):
    return chosen(logits{bias})[0]


def chosen(logits{bias}):
    """The weights of each row's choices, and which they are."""
    flat = rows_of(logits)
    rows, shape = flat.shape[0], (*logits.shape[:-1], CHOICES.value)
    weights = torch.empty(shape, dtype=OUT, device=logits.device)
    numbers = torch.empty(shape, dtype=torch.int64, device=logits.device)
    if rows:
        size = tile()
        with torch.cuda.device_of(logits):
            route[(triton.cdiv(rows, size["ROWS"]),)](
                weights, numbers, flat, {given}, flat.stride(), rows, **size, num_warps=warps(), enable_fp_fusion=True
            )
    return weights, numbers


def backward(grad, logits{bias}, needs=None, saved=None):
    """The gradient of the logits; the choice is made again where it was not saved."""
    numbers = chosen(logits{bias})[1] if saved is None else saved
    flat, size = rows_of(logits), tile()
    found = torch.empty(flat.shape, dtype=logits.dtype, device=logits.device)
    grad = grad.reshape(-1, CHOICES.value)
    if flat.shape[0]:
        with torch.cuda.device_of(logits):
            pull[(triton.cdiv(flat.shape[0], size["ROWS"]),)](
                found, grad, numbers, flat, flat.stride(), grad.stride(), flat.shape[0],
                **size, num_warps=warps(), enable_fp_fusion=True,
            )
    return (found.view(logits.shape),{nothing})
'''


@dataclass(frozen=True)
class Groups:
    """`count` groups of columns that stand side by side, of which `kept` are chosen by the sum of their `best` columns."""

    count: int
    kept: int
    best: int = 2
    fill: float = float("-inf")

    @property
    def constants(self) -> str:
        values = {"GROUPS": self.count, "KEPT": self.kept, "BEST": self.best, "FILL": f'float("{self.fill}")'}
        return "".join(f"{name} = tl.constexpr({value})\n" for name, value in values.items())


def render(
    name: str, origin: str, forward: fx.Graph, backward: fx.Graph, *,
    choices: int, out: torch.dtype, biased: bool = False, normalised: bool = True, eps: float = 0.0, factor: float = 1.0,
    groups: Groups | None = None,
) -> Kernel:  # fmt: skip
    """A router by the score of its rows; the graphs are the score's in row form, by gatec.derive."""
    (logits,) = forward.find_nodes(op="placeholder")
    value = logits.meta["val"]
    columns = value.shape[-1]
    if columns > COLUMNS or not 1 <= choices <= min(columns, CHOICES) or value.dtype == torch.float64:
        raise GatecError(
            f"at most {CHOICES} choices out of at most {COLUMNS} columns in at most 32 bits",
            found=f"{choices} out of {columns} in {value.dtype}",
        )
    head = HEAD.format(name=name, origin=origin, maker="router", dtypes=(value.dtype,), out=out, wide="float32")
    head += f"COLUMNS = tl.constexpr({columns})\nCHOICES = tl.constexpr({choices})\n"
    head += f"NORMALISED = tl.constexpr({normalised})\nEPS = tl.constexpr({eps!r})\nFACTOR = tl.constexpr({factor!r})\n"
    head += groups.constants if groups else ""
    lines, scores = spell(forward, {logits.name: "logits"})
    pulled, grads = spell(backward, {logits.name: "logits", "grad": "picked"})
    lines = [*lines, f"scores = {scores[0]}"]
    written = [
        ROUTE.replace("{lines}", indented(lines)).replace("\n{groups}\n", GROUPED if groups else "\n"),
        PULL.replace("{lines}", indented(lines)).replace("{back}", indented(pulled)).replace("{result}", str(grads[0])),
    ]
    launch = LAUNCH.format(
        bias=", bias" if biased else "",
        given="bias.contiguous()" if biased else "None",
        nothing=" None" if biased else "",
    )
    functions = needed((line for text in written for line in text.splitlines()), "float32")
    return Kernel(name, "\n\n\n".join(p.strip("\n") for p in (head, *functions, *written, SORT, launch, SORTED)) + "\n")


def indented(lines: Sequence[str]) -> str:
    return "\n".join(f"    {line}" for line in lines)
