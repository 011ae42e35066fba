"""Partition: the hidden units of an MLP, sorted into equal experts.

Balanced k-means. Each round assigns the units to the centres at the least total cost under exact
capacities, then moves the centres to the mean of their units; the best round is kept. The
assignment is in two steps: prices on the centres level the demand nearly, and shortest paths
between the centres carry the rest, which leaves the optimum and not an approximation.

Features are rounded to whole numbers small enough for every float64 product and sum to be exact.
So the order of summation does not matter: labels are the same at any number of threads, and equal
units have equal costs to the last bit.
"""

import itertools
import math
from collections.abc import Iterable, Iterator, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from gatec.errors import GatecError

Costs = NDArray[np.float64]  # [clusters, units], whole numbers
Labels = NDArray[np.int64]

ROWS = 2048  # units whose distances are computed at a time
SKETCH = 256  # columns that the choice of the first centres looks at
WIDEST = 4096  # columns of weights that are clustered as they are; more are sketched
BOLD = (0.7, 0.35, 0.0)  # how much of what one unit's exchange gains is expected of all at once, until it gains nothing
TOLERANCE = 3e-5  # a round which gains less than this share of the inertia gains nothing


def balanced_clusters(features: Tensor, clusters: int, *, seed: int = 0, iterations: int = 100) -> Tensor:
    """A label for each row of `features`, every label exactly as often as every other."""
    units = check(features, clusters)
    if iterations < 1:
        raise GatecError("at least one iteration", found=f"iterations={iterations}")
    grid = whole_numbers(features)
    square = np.concatenate([r.double().square().sum(dim=1).numpy() for r in chunks(grid)])
    each, room = np.arange(units), units // clusters
    costs = distances(grid, first_centres(grid, clusters, seed))
    prices = level(costs, np.zeros(clusters))
    labels = best = assign(costs, prices)
    least, bold = math.inf, list(BOLD if room > 1 else BOLD[-1:])
    for _ in range(iterations):
        costs = distances(grid, means(grid, labels, clusters))
        inertia = float(square.sum() + costs[labels, each].sum())
        if inertia < least * (1 - TOLERANCE):
            least, best, costs_there = inertia, labels, costs
        elif len(bold) > 1:
            del bold[0]
            costs = costs_there
        else:
            break
        if bold[0]:
            costs = exchanged(costs + square, best, room / bold[0]) - square
        prices = level(costs, prices)
        labels = assign(costs, prices)
    return torch.from_numpy(best).to(features.device)


def order(labels: Tensor, clusters: int) -> Tensor:
    """The permutation that brings units expert by expert, ascending inside each.

    `W[order(labels, E)].view(E, h // E, d)` are the experts of a weight W[h, d].
    """
    divide(labels.numel(), clusters)
    counts = torch.bincount(labels.clamp(0, clusters), minlength=clusters)
    if int(labels.min()) < 0 or len(counts) != clusters or not (counts == counts[0]).all():
        found = ", ".join(str(int(n)) for n in counts[:8]) + (", ..." if len(counts) > 8 else "")
        raise GatecError(
            f"{labels.numel() // clusters} units with each label from 0 to {clusters - 1}",
            found=f"labels from {int(labels.min())} to {int(labels.max())}, as often as {found}",
            hint="take the labels from balanced_clusters",
        )
    return torch.argsort(labels, stable=True)


# what is clustered


def weight_features(rows: Sequence[Tensor], *, columns: int = WIDEST, seed: int = 0) -> Tensor:
    """Each unit's incoming weights, at length one; gate's and up's in a row, sketched where they are wider than `columns`."""
    if not rows or any(r.ndim != 2 or len(r) != len(rows[0]) for r in rows):
        raise GatecError(
            "weight matrices with one row for each hidden unit",
            found=", ".join(str(tuple(r.shape)) for r in rows) or "none",
            hint="transpose the weight of a Conv1D, and halve a fused gate_up",
        )
    parts = zip(*(chunks(r.detach()) for r in rows), strict=True)
    return sketched(
        (torch.cat([unit_length(at_least_float32(p)) for p in side], dim=1) for side in parts), columns, seed
    )


def sketched(parts: Iterable[Tensor], columns: int, seed: int) -> Tensor:
    """Rows in at most `columns` columns: a count sketch, which keeps inner products on average.

    Each column of the sketch sums as many columns as every other, with random signs.
    """
    found = []
    for rows in parts:
        width = rows.shape[1]
        if width > columns:
            rng, several = np.random.default_rng(seed), -(-width // columns)
            place = torch.from_numpy(rng.permutation(several * columns)).to(rows.device)
            sign = torch.from_numpy(rng.choice([-1.0, 1.0], width)).to(rows)
            rows = F.pad(rows * sign, (0, several * columns - width))
            rows = rows[:, place].unflatten(1, (columns, several)).sum(2)
        found.append(rows)
    return torch.cat(found)


def activation_features(hidden: Tensor, *, top: int = 0, columns: int = 512, seed: int = 0) -> Tensor:
    """Co-activation features of one batch; see `Coactivation`."""
    if hidden.ndim < 2:
        raise GatecError("activations [tokens, units]", found=f"shape {tuple(hidden.shape)}")
    seen = Coactivation(hidden.shape[-1], top=top, columns=columns, seed=seed)
    seen.add(hidden)
    return seen.features()


class Coactivation:
    """Which hidden units are active on the same tokens, gathered batch by batch.

    A token speaks with its |activations| at length one, or, with `top`, with a one at each of its
    `top` largest. The rows of `features()` have length one, and their inner products are the
    cosines of the units over all tokens: exact up to `columns` tokens, and a count sketch after
    that, where token t adds to column t % columns with a random sign.
    """

    def __init__(self, units: int, *, top: int = 0, columns: int = 512, seed: int = 0) -> None:
        if units < 1 or columns < 1:
            raise GatecError("at least one unit and one column", found=f"{units} and {columns}")
        if not 0 <= top <= units:
            raise GatecError(f"top between 0 and the {units} hidden units", found=f"top={top}")
        self.units, self.top, self.columns, self.seed = units, top, columns, seed
        self.tokens = 0
        self.spoken = torch.zeros(units, dtype=torch.float64)
        self.sums = torch.zeros(columns, units, dtype=torch.float64)

    def add(self, hidden: Tensor) -> None:
        """Count the tokens of hidden[..., units]."""
        if hidden.ndim < 1 or hidden.shape[-1] != self.units:
            raise GatecError(f"activations of {self.units} hidden units", found=f"shape {tuple(hidden.shape)}")
        tokens = hidden.detach().reshape(-1, self.units)
        while len(tokens):
            round_, first = divmod(self.tokens, self.columns)
            n = min(len(tokens), self.columns - first)
            now, tokens = tokens[:n], tokens[n:]
            signs = np.random.default_rng((self.seed, round_)).choice([-1.0, 1.0], self.columns)
            if round_ == 0:
                signs[:] = 1
            share = self.speak(at_least_float32(now)).to(self.sums)
            self.spoken += share.sum(0)
            self.sums[first : first + n] += share * torch.from_numpy(signs[first : first + n, None])
            self.tokens += n

    def speak(self, tokens: Tensor) -> Tensor:
        finite(tokens, "activations")
        if self.top == 0:
            return unit_length(tokens.abs())
        active = tokens.abs().topk(self.top, dim=1)
        return torch.zeros_like(tokens).scatter_(1, active.indices, (active.values > 0).to(tokens))

    def features(self) -> Tensor:
        return unit_length(self.sums[: self.some()].T.float())

    def rates(self) -> Tensor:
        """How active each unit is: its mean share of a token, or with `top` how often it is among the largest."""
        return self.spoken / self.some()

    def some(self) -> int:
        if self.tokens == 0:
            raise GatecError("activations to tell units apart by", found="no tokens", hint="add some")
        return self.tokens


def at_least_float32(x: Tensor) -> Tensor:
    return x if x.dtype == torch.float64 else x.float()


def unit_length(x: Tensor) -> Tensor:
    """Rows at length one; a row of zeros stays."""
    top = x.abs().amax(dim=1, keepdim=True)
    x = x / top.where(top > 0, 1)  # so that no square over- or underflows
    length = x.square().sum(dim=1, keepdim=True).sqrt()
    return x / length.where(length > 0, 1)


# what is refused


def check(features: Tensor, clusters: int) -> int:
    if features.ndim != 2 or 0 in features.shape or not features.is_floating_point():
        raise GatecError(
            "features [units, columns] of floating point",
            found=f"{str(features.dtype).removeprefix('torch.')}{list(features.shape)}",
        )
    divide(len(features), clusters)
    finite(features, "features")
    return len(features)


def divide(units: int, clusters: int) -> None:
    if clusters < 1:
        raise GatecError("at least one expert", found=f"{clusters} experts")
    if clusters > units:
        raise GatecError(
            f"{clusters} experts of {units} hidden units",
            found="more experts than units",
            hint=f"take at most {units}",
        )
    if units % clusters:
        below = next(n for n in range(clusters, 0, -1) if units % n == 0)
        above = next(n for n in range(clusters, units + 1) if units % n == 0)
        raise GatecError(
            f"{clusters} equal experts of {units} hidden units",
            found=f"{units} is not a multiple of {clusters}, {units % clusters} would be left over",
            hint=f"take {below} or {above} experts",
        )


def finite(x: Tensor, what: str) -> None:
    for first, rows in zip(range(0, len(x), ROWS), chunks(x), strict=True):
        if not (good := rows.isfinite()).all():
            row, column = (int(i) for i in (~good).nonzero()[0])
            raise GatecError(
                f"finite {what}",
                found=f"{float(rows[row, column])}",
                where=f"row {first + row}, column {column}",
            )


# distances, exact in float64


def chunks(x: Tensor) -> Iterator[Tensor]:
    return (x[first : first + ROWS] for first in range(0, len(x), ROWS))


def whole_numbers(features: Tensor) -> Tensor:
    """Features in steps of the largest / 2**bits: a sum of `f` squares stays below 2**50."""
    bits = min(18, (50 - math.ceil(math.log2(features.shape[1]))) // 2)
    features = features.detach().cpu()
    largest = max(float(rows.abs().max()) for rows in chunks(features)) or 1.0
    # float32 holds whole numbers up to 2**24
    return torch.cat([(r.double() / largest * 2**bits).round_().float() for r in chunks(features)])


def distances(grid: Tensor, centres: Tensor) -> Costs:
    """Squared distances, less the square of the unit itself, which no centre can change."""
    costs = np.empty((len(centres), len(grid)))
    length = centres.square().sum(dim=1, keepdim=True)
    for first, rows in zip(range(0, len(grid), ROWS), chunks(grid), strict=True):
        costs[:, first : first + ROWS] = torch.addmm(length, centres, rows.double().T, alpha=-2)
    return costs


def exchanged(costs: Costs, labels: Labels, room: float) -> Costs:
    """Distances as they are once the unit has moved and its centre with it (Hartigan).

    A unit pulls its own centre towards itself, the more so the fewer units there are, and would
    pull another one as soon as it got there. Plain k-means ignores both, and stalls early.
    """
    moved = costs * (room / (room + 1))
    each = np.arange(len(labels))
    moved[labels, each] = costs[labels, each] * (room / (room - 1))
    whole: Costs = np.rint(moved)
    return whole


def means(grid: Tensor, labels: Labels, clusters: int) -> Tensor:
    sums = torch.zeros(clusters, grid.shape[1], dtype=torch.float64)
    for rows, mine in zip(chunks(grid), chunks(torch.from_numpy(labels)), strict=True):
        sums.index_add_(0, mine, rows.double())
    return (sums / (len(grid) // clusters)).round_()


def first_centres(grid: Tensor, clusters: int, seed: int) -> Tensor:
    """k-means++, the best of a few draws at each step (greedy), on a sketch of the features."""
    rng = np.random.default_rng(seed)
    units = len(grid)
    sketch = sketched((rows.double() for rows in chunks(grid)), SKETCH, seed)
    square = sketch.square().sum(dim=1).numpy()

    def to(picked: NDArray[np.int64]) -> Costs:
        product = (sketch @ sketch[torch.from_numpy(picked)].T).T.numpy()
        apart: Costs = np.maximum(square + square[picked, None] - 2 * product, 0)
        return apart

    chosen = [int(rng.integers(units))]
    near = to(np.array(chosen))[0]
    for _ in range(1, clusters):
        reach = near.cumsum()
        draws = rng.random(2 + int(math.log(clusters))) * reach[-1]
        picked = np.searchsorted(reach, draws, side="right").clip(max=units - 1)
        nearer = np.minimum(near, to(picked))
        best = int(nearer.sum(axis=1).argmin())
        chosen.append(int(picked[best]))
        near = nearer[best]
    return grid[chosen].double()


# the assignment


def level(costs: Costs, prices: NDArray[np.float64], rounds: int = 4) -> NDArray[np.float64]:
    """Prices at which every centre is wanted by nearly as many units: Sinkhorn, ever colder."""
    clusters, units = costs.shape
    if clusters == 1:
        return prices
    offer = costs - costs.min(axis=0)
    warm = float(np.partition(offer, 1, axis=0)[1].mean()) or float(offer.mean()) or 1.0
    offer32 = (offer / warm).astype(np.float32)
    price = (prices / warm).astype(np.float32)
    for heat in 2.0 ** -np.arange(0, 7):
        for _ in range(rounds):
            wish = (offer32 + price[:, None]) * np.float32(-1 / heat)
            wish -= wish.max(axis=0)
            np.exp(wish, out=wish)
            wish /= wish.sum(axis=0)
            wanted = wish.sum(axis=1) * (clusters / units)
            price += np.float32(heat) * np.log(np.maximum(wanted, np.float32(1e-6)))
    price -= price.mean()
    return np.rint(price.astype(np.float64) * warm)


def assign(costs: Costs, prices: NDArray[np.float64]) -> Labels:
    """The cheapest labels which give every centre the same number of units.

    At any prices, each unit at its cheapest centre is optimal for the numbers that come out. A
    unit more for one centre and a unit less for another, by the shortest path between them, keeps
    it optimal (successive shortest paths); units in a tie go together.
    """
    clusters, units = costs.shape
    labels: Labels = (costs + prices[:, None]).argmin(axis=0)
    spare = units // clusters - np.bincount(labels, minlength=clusters)
    moves = np.full((clusters, clusters), np.inf)  # what the cheapest unit of a row asks to move

    def ask(centre: int) -> None:
        mine = np.flatnonzero(labels == centre)
        moves[centre] = np.inf
        if len(mine):
            moves[centre] = (costs[:, mine] - costs[centre, mine]).min(axis=1)

    if spare.any():
        for centre in range(clusters):
            ask(centre)
    while spare.any():
        path = shortest(moves, spare)
        steps = []
        room = min(-spare[path[0]], spare[path[-1]])
        for a, b in itertools.pairwise(path):
            mine = np.flatnonzero(labels == a)
            steps.append((mine[costs[b, mine] - costs[a, mine] == moves[a, b]], b))
            room = min(room, len(steps[-1][0]))
        for movers, b in steps:
            labels[movers[:room]] = b
        spare[path[0]] += room
        spare[path[-1]] -= room
        for centre in path:
            ask(centre)
    return labels


def shortest(moves: Costs, spare: NDArray[np.int64]) -> list[int]:
    """The cheapest way from any centre with too many units to any with too few (Bellman-Ford)."""
    cost = np.where(spare < 0, 0.0, np.inf)
    before = np.full(len(spare), -1)
    while True:
        through = cost[:, None] + moves
        least = through.min(axis=0)
        better = least < cost
        if not better.any():
            break
        before[better] = through.argmin(axis=0)[better]
        cost[better] = least[better]
    path = [int(np.where(spare > 0, cost, np.inf).argmin())]
    while before[path[-1]] >= 0:
        path.append(int(before[path[-1]]))
    return path[::-1]
