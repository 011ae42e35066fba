"""Mixtures of experts as regions: from the choice of each token to the sum of its experts' results, around a gate.

    expert, order = sort(chosen.flatten())                  rows = x[order // k]
    hidden = gate(rows @ weight[expert], ...)               pairs = (hidden @ down[expert]) * scale[order]
    y = pairs[argsort(order)].unflatten(0, (-1, k)).sum(1)

Grouped products over sorted pairs, or a matrix looked up for each pair; weights apart, packed, interleaved or
transposed; with biases or without. Whose model it is does not matter.
"""

from gatec.mixtures import maker
from gatec.mixtures.region import Mixture, mixtures

__all__ = ["Mixture", "maker", "mixtures"]
