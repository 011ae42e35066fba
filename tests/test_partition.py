"""The laws of gatec.partition: equal experts, the same for everyone, and good ones."""

import itertools
import math

import numpy as np
import pytest
import torch

from gatec.errors import GatecError
from gatec.partition import (
    Coactivation,
    activation_features,
    assign,
    balanced_clusters,
    level,
    order,
    weight_features,
)


def drawn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def planted(units: int, width: int, clusters: int, noise: float = 0.3, seed: int = 0):
    truth = (torch.arange(units) % clusters)[torch.from_numpy(np.random.default_rng(seed).permutation(units))]
    centres = drawn(clusters, width, seed=seed)
    return centres[truth] + noise * drawn(units, width, seed=seed + 1), truth


def inertia(features: torch.Tensor, labels: torch.Tensor, clusters: int) -> float:
    x = features.double()
    centres = torch.zeros(clusters, x.shape[1], dtype=x.dtype).index_add_(0, labels, x)
    return float((x - centres[labels] * clusters / len(x)).square().sum())


def shared(a: torch.Tensor, b: torch.Tensor) -> float:
    """Normalised mutual information."""
    table = torch.zeros(int(a.max()) + 1, int(b.max()) + 1, dtype=torch.float64)
    table.index_put_((a, b), torch.tensor(1 / len(a), dtype=torch.float64), accumulate=True)
    rows, columns = table.sum(1), table.sum(0)
    mutual = torch.xlogy(table, table / torch.outer(rows, columns).clamp_min(1e-300)).sum()
    return float(2 * mutual / -(torch.xlogy(rows, rows).sum() + torch.xlogy(columns, columns).sum()))


def greedy(costs: np.ndarray) -> np.ndarray:
    """Each unit in turn to the cheapest centre that has room."""
    room = np.full(len(costs), costs.shape[1] // len(costs))
    labels = np.empty(costs.shape[1], np.int64)
    for unit in range(costs.shape[1]):
        labels[unit] = np.where(room > 0, costs[:, unit], np.inf).argmin()
        room[labels[unit]] -= 1
    return labels


FEATURES = {
    "noise": drawn(96, 20),
    "planted": planted(96, 20, 8)[0],
    "all equal": torch.ones(96, 5),
    "all zero": torch.zeros(96, 5),
    "a third dead": drawn(96, 20) * (torch.arange(96) % 3 > 0)[:, None],
    "an outlier": torch.cat([drawn(95, 3), torch.full((1, 3), 1e30)]),
    "one column": drawn(96, 1),
    "more columns than a sketch": drawn(96, 700),
    "float16": drawn(96, 20).half(),
    "tiny": drawn(96, 20).double() * 1e-300,
}


@pytest.mark.parametrize("clusters", [1, 2, 6, 48, 96])
@pytest.mark.parametrize("features", FEATURES.values(), ids=FEATURES)
def test_every_expert_has_the_same_number_of_units(features, clusters):
    labels = balanced_clusters(features, clusters)
    assert labels.dtype == torch.int64
    assert torch.bincount(labels, minlength=clusters).tolist() == [96 // clusters] * clusters


@pytest.mark.parametrize("name", ["noise", "planted", "a third dead"])
def test_labels_do_not_depend_on_the_global_seed_or_the_threads(name):
    threads = torch.get_num_threads()
    found = []
    try:
        for count in (1, 2, 3):
            torch.manual_seed(count)
            np.random.seed(count)
            torch.set_num_threads(count)
            state = torch.get_rng_state()
            found.append(balanced_clusters(FEATURES[name], 8, seed=5))
            assert torch.equal(torch.get_rng_state(), state)
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(found[0], found[1])
    assert torch.equal(found[0], found[2])


@pytest.mark.parametrize("scale", [2.0**-40, 1.0, 2.0**40])
def test_labels_do_not_depend_on_the_scale(scale):
    features, _ = planted(96, 20, 8)
    assert torch.equal(balanced_clusters(features * scale, 8), balanced_clusters(features, 8))


@pytest.mark.parametrize("units, width, clusters", [(64, 16, 2), (256, 32, 8), (512, 300, 32)])
def test_planted_clusters_are_recovered(units, width, clusters):
    features, truth = planted(units, width, clusters)
    labels = balanced_clusters(features, clusters)
    assert shared(labels, truth) == pytest.approx(1)
    assert inertia(features, labels, clusters) < 0.2 * inertia(features, truth.roll(1), clusters)


@pytest.mark.parametrize("seed", range(4))
def test_unstructured_weights_are_clustered_better_than_at_random(seed):
    features = weight_features([drawn(256, 64, seed=seed)])
    random = inertia(features, torch.arange(256) % 16, 16)
    assert inertia(features, balanced_clusters(features, 16, seed=seed), 16) < 0.96 * random


@pytest.mark.parametrize("seed", range(4))
def test_more_iterations_are_never_worse(seed):
    features = planted(240, 24, 10, noise=1.5, seed=seed)[0]
    trail = [inertia(features, balanced_clusters(features, 12, seed=seed, iterations=n), 12) for n in (1, 2, 4, 8, 16)]
    assert all(b <= a * (1 + 1e-4) for a, b in itertools.pairwise(trail)), trail


# the assignment


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("clusters", [2, 3, 6])
@pytest.mark.parametrize("levelled", [True, False])
def test_no_assignment_is_cheaper(clusters, seed, levelled):
    costs = np.random.default_rng(seed).integers(0, 9, (clusters, 6)).astype(float)
    prices = level(costs, np.zeros(clusters)) if levelled else np.zeros(clusters)
    slots = np.arange(6) % clusters
    least = min(costs[list(p), range(6)].sum() for p in set(itertools.permutations(slots.tolist())))
    labels = assign(costs, prices)
    assert sorted(labels.tolist()) == sorted(slots.tolist())
    assert costs[labels, np.arange(6)].sum() == least


@pytest.mark.parametrize("clusters", [4, 20])
def test_an_assignment_beats_greedy_and_has_no_swap_left(clusters):
    costs = np.random.default_rng(0).integers(0, 10**6, (clusters, 400)).astype(float)
    labels, each = assign(costs, level(costs, np.zeros(clusters))), np.arange(400)
    assert costs[labels, each].sum() < costs[greedy(costs), each].sum()
    mine = costs[labels, each]
    swapped = costs[labels[None, :], each[:, None]] + costs[labels[:, None], each[None, :]]
    assert (swapped >= mine[:, None] + mine[None, :]).all()


# the order


def test_order_brings_units_expert_by_expert():
    labels = torch.tensor([1, 0, 2, 1, 0, 2])
    assert order(labels, 3).tolist() == [1, 4, 0, 3, 2, 5]


def test_order_makes_the_experts_views_of_the_weight():
    weight = drawn(96, 7)
    labels = balanced_clusters(weight, 8)
    experts = weight[order(labels, 8)].view(8, 12, 7)
    assert torch.equal(order(labels, 8).sort().values, torch.arange(96))
    for e in range(8):
        assert torch.equal(experts[e], weight[labels == e])


# features


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_weight_features_are_rows_of_length_one_side_by_side(dtype):
    gate, up = drawn(6, 4).to(dtype), drawn(6, 8, seed=1).to(dtype) * 100
    features = weight_features([gate, up])
    assert features.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    torch.testing.assert_close(features[:, :4].norm(dim=1), torch.ones(6).to(features))
    torch.testing.assert_close(features[:, 4:], up.to(features) / up.to(features).norm(dim=1)[:, None])


def test_a_row_of_zeros_stays_and_a_huge_one_does_not_overflow():
    features = weight_features([torch.tensor([[0.0, 0.0], [3e38, 3e38], [1e-38, 0.0]])])
    half = math.sqrt(0.5)
    torch.testing.assert_close(features, torch.tensor([[0.0, 0.0], [half, half], [1.0, 0.0]]))


@pytest.mark.parametrize("top", [0, 5])
def test_units_active_on_the_same_tokens_come_together(top):
    truth = torch.arange(60) % 4
    spoken = torch.arange(2000) % 4
    hidden = (truth == spoken[:, None]) * drawn(2000, 60).abs() + 0.05 * drawn(2000, 60, seed=1)
    labels = balanced_clusters(activation_features(hidden, top=top, columns=256), 4)
    assert shared(labels, truth) == pytest.approx(1)


def test_features_are_exact_cosines_up_to_as_many_tokens_as_columns():
    hidden = drawn(100, 30)
    share = hidden.abs() / hidden.norm(dim=1, keepdim=True)
    unit = share / share.norm(dim=0)
    features = activation_features(hidden, columns=128)
    assert features.shape == (30, 100)
    torch.testing.assert_close(features @ features.T, unit.T @ unit)


def test_batches_of_any_size_add_up_to_the_same():
    hidden = drawn(300, 30)
    seen = Coactivation(30, columns=64)
    for n, rows in enumerate(hidden.split([1, 63, 0, 65, 171])):
        seen.add(rows if n % 2 else rows[None])
    torch.testing.assert_close(seen.features(), activation_features(hidden, columns=64), rtol=0, atol=1e-6)
    assert seen.features().shape == (30, 64)


# what is refused


@pytest.mark.parametrize(
    "features, clusters, words",
    [
        (drawn(12, 3), 0, r"at least one expert\n  found 0 experts"),
        (drawn(12, 3), -2, r"at least one expert\n  found -2 experts"),
        (drawn(12, 3), 13, r"more experts than units\n  try   take at most 12"),
        (drawn(12, 3), 5, r"5 equal experts of 12 hidden units\n.*\n  try   take 4 or 6 experts"),
        (drawn(13, 3), 5, r"13 is not a multiple of 5, 3 would be left over\n  try   take 1 or 13"),
        (drawn(12), 3, r"features \[units, columns\] of floating point\n  found float32\[12\]"),
        (torch.ones(12, 3).long(), 3, r"found int64\[12, 3\]"),
        (torch.ones(0, 3), 3, r"found float32\[0, 3\]"),
    ],
)
def test_what_cannot_be_split_is_refused_in_words(features, clusters, words):
    with pytest.raises(GatecError, match=words):
        balanced_clusters(features, clusters)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_features_that_are_not_finite_are_refused_with_their_place(bad):
    features = torch.zeros(3000, 2)
    features[2500, 1] = bad
    with pytest.raises(GatecError, match=rf"finite features\n  found {bad}\n  where row 2500, column 1"):
        balanced_clusters(features, 3)


def test_what_else_is_refused():
    with pytest.raises(GatecError, match="at least one iteration"):
        balanced_clusters(drawn(4, 2), 2, iterations=0)
    with pytest.raises(GatecError, match=r"2 units with each label from 0 to 1\n.* as often as 3, 1"):
        order(torch.tensor([0, 0, 0, 1]), 2)
    with pytest.raises(GatecError, match="labels from 0 to 2"):
        order(torch.tensor([0, 0, 1, 1, 2, 2]), 2)
    with pytest.raises(GatecError, match="labels from -1 to 1"):
        order(torch.tensor([-1, 0, 1, 1]), 2)
    with pytest.raises(GatecError, match=r"one row for each hidden unit\n  found \(3, 2\), \(4, 2\)"):
        weight_features([drawn(3, 2), drawn(4, 2)])
    with pytest.raises(GatecError, match="found none"):
        weight_features([])
    with pytest.raises(GatecError, match=r"activations of 4 hidden units\n  found shape \(2, 3\)"):
        Coactivation(4).add(drawn(2, 3))
    with pytest.raises(GatecError, match="finite activations"):
        Coactivation(2).add(torch.tensor([[1.0, math.nan]]))
    with pytest.raises(GatecError, match="no tokens"):
        Coactivation(4).features()
    with pytest.raises(GatecError, match="top between 0 and the 4 hidden units"):
        Coactivation(4, top=5)
    with pytest.raises(GatecError, match="at least one unit and one column"):
        Coactivation(0)
    with pytest.raises(GatecError, match=r"activations \[tokens, units\]"):
        activation_features(drawn(3))
