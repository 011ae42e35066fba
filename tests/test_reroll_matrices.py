"""gatec.reroll of loops whose state is a matrix: one linear attention, or a scan, or the reason why not."""

import importlib

import pytest
import torch
from rolled import Looped, inputs
from rolled_matrices import MATRICES, REFUSED, SCANS
from sampled import some
from test_reroll import same
from torch import nn

import gatec
from gatec.capture import unit_of
from gatec.linear_attention import linear_attention
from gatec.recurrence import linear_recurrence


@pytest.fixture(autouse=True)
def doubles():
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def targets(rolled):
    (graphs,) = unit_of(rolled).graphs.values()
    assert len(graphs) == 1 and len(graphs[0].graph.nodes) < 120
    return {n.target for n in graphs[0].graph.nodes}


@pytest.mark.parametrize("name", some(MATRICES, of=2))
def test_a_loop_is_one_linear_attention_for_every_length(name):
    model = Looped(MATRICES[name])
    rolled = gatec.reroll(model, inputs(8))
    (edit,) = gatec.report(rolled).edits
    assert edit.verdict == "put" and "one graph for every length" in edit.note, gatec.report(rolled)
    for steps, batch in ((7, 1), (70, 2)):
        same(model, rolled, inputs(steps, batch))
    assert linear_attention in targets(rolled) and linear_recurrence not in targets(rolled)


@pytest.mark.parametrize("name", SCANS)
def test_where_more_than_reads_is_wanted_it_is_a_scan(name):
    model = Looped(SCANS[name])
    rolled = gatec.reroll(model, inputs(8))
    same(model, rolled, inputs(30))
    assert linear_recurrence in targets(rolled) and linear_attention not in targets(rolled)


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_no_recurrence_stays_with_the_reason(name):
    (edit,) = gatec.report(gatec.reroll(Looped(REFUSED[name]), inputs(13))).edits
    words = {"normed_state": "normalize of the carried value", "by_keyword": "mul with arguments in another form"}
    assert edit.verdict == "left" and words.get(name, "matmul of the carried value") in edit.why, edit.why


class Written(nn.Module):
    """A function of transformers that runs a gated delta rule token by token."""

    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, q, k, v, g, beta):
        return self.function(
            q, k, v, g, beta, initial_state=None, output_final_state=True, use_qk_l2norm_in_kernel=True
        )


PUBLISHED = [
    ("qwen3_next", "torch_recurrent_gated_delta_rule", ()),
    ("kimi_linear", "recurrent_kimi_delta_attention", (6,)),
]


@pytest.mark.parametrize("name, function, keys", some(PUBLISHED, of=2, at=1))
def test_published_layers(name, function, keys):
    pytest.importorskip("transformers")
    module = importlib.import_module(f"transformers.models.{name}.modeling_{name}")
    model = Written(getattr(module, function))

    def given(steps):
        torch.manual_seed(steps)
        q, k = torch.randn(2, 2, steps, 3, 6).unbind()
        return [q, k, torch.randn(2, steps, 3, 4), -torch.rand(2, steps, 3, *keys), torch.rand(2, steps, 3)]

    torch.set_default_dtype(torch.float32)
    rolled = gatec.reroll(model, given(8))
    (edit,) = gatec.report(rolled).edits
    assert edit.verdict == "put" and "one graph for every length" in edit.note, edit
    assert linear_attention in targets(rolled)
    ours, theirs = ([x.requires_grad_() for x in given(100)] for _ in range(2))
    found, wanted = rolled(*ours), model(*theirs)
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)
    grads = (torch.autograd.grad(x[0].square().sum(), y) for x, y in ((found, ours), (wanted, theirs)))
    torch.testing.assert_close(*grads, rtol=1e-3, atol=1e-4)
