"""explain() says which graphs a rewritten model runs, for which calls, and how often."""

import copy

import torch
from torch import nn
from torch.nn import functional as F

import gatec

X = torch.randn(4, 8)


class Mixed(nn.Module):
    """Asks about a size, a flag of its own and an argument."""

    def __init__(self):
        super().__init__()
        self.up, self.down, self.deep = nn.Linear(8, 16), nn.Linear(16, 8), True

    def forward(self, x, twice=False):
        y = self.down(F.gelu(self.up(x)))
        y = y + x if self.deep else y
        y = y[:3] if x.shape[0] > 3 else y
        return y * 2 if twice else y


def explained(model):
    (found,) = gatec.explain(model).modules
    return found


def test_hits_replays_and_what_each_graph_holds_for():
    gated = gatec.convert(Mixed().eval(), "prune", inputs=X)
    assert explained(gated).replays == 0 and len(explained(gated).graphs) == 1
    for _ in range(3):
        gated(X)
    before = explained(gated).graphs[0].hits
    gated(torch.randn(2, 8))
    gated(X, twice=True)
    gated.deep = False
    gated(X)
    found = explained(gated)
    assert found.replays == 3 and found.graphs[0].hits >= 3 and found.graphs[0].hits == before
    words = str(gatec.explain(gated))
    assert "Mixed: 1 rewritten modules" in words and "(model) (Mixed): prune" in words
    assert "4 of at most 16 graphs, 3 captured after conversion" in words
    assert "float32[*, *] on cpu" in words and "twice=, True" in words
    assert "where self.deep is True" in words and "where self.deep is False" in words
    assert "as long as" in words and "test_explain.py" in words and "finds True" in words and "finds False" in words


def test_edits_at_the_boundary_and_untouched_models():
    assert str(gatec.explain(Mixed())) == "Mixed: no module of it is rewritten"
    wrapped = gatec.convert(Mixed().eval(), "wrap", inputs=X)
    wrapped(X)
    found = {m.path: m for m in gatec.explain(wrapped).modules}
    assert found.keys() == {"up", "down"} and found["up"].edits == ("wrap",)
    assert found["up"].graphs[0].arguments.endswith("(at its boundary)")


def test_explaining_runs_and_changes_nothing():
    gated = gatec.convert(Mixed().eval(), "prune", inputs=X)
    twin = copy.deepcopy(gated)
    assert str(gatec.explain(gated)) == str(gatec.explain(gated))
    assert torch.equal(gated(X), twin(X))
