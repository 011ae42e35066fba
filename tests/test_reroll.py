"""gatec.reroll: every way of writing a loop over time becomes one recurrence, for every length; the rest is refused in words."""

import copy
import inspect
import re
import sys

import pytest
import torch
from rolled import LOOPS, TRAPS, Looped, inputs
from sampled import some
from torch import nn

import gatec
from gatec.capture import unit_of


def flat(value):
    return list(value) if isinstance(value, tuple) else [value]


def same(model, rolled, given):
    """Values and all gradients."""
    ours, theirs = ([x.clone().requires_grad_() for x in given] for _ in range(2))
    found, wanted = flat(rolled(*ours)), flat(model(*theirs))
    torch.testing.assert_close(found, wanted, rtol=1e-10, atol=1e-10)
    sources = [(ours, rolled), (theirs, model)]
    sums = (sum((v * v).sum() for v in values) for values in (found, wanted))
    a, b = (
        torch.autograd.grad(s, [*x, *m.parameters()], allow_unused=True)
        for s, (x, m) in zip(sums, sources, strict=True)
    )
    for mine, other in zip(a, b, strict=True):
        assert (mine is None) == (other is None)
        if mine is not None:
            torch.testing.assert_close(mine, other, rtol=1e-9, atol=1e-9)


@pytest.fixture(autouse=True)
def doubles():
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize("name", some(LOOPS, of=2))
def test_a_loop_is_one_recurrence_for_every_length(name):
    model = Looped(LOOPS[name])
    rolled = gatec.reroll(model, inputs(8))
    put = [e for e in gatec.report(rolled).edits if e.verdict == "put"]
    assert len(put) == 1 and "one graph for every length" in put[0].note, gatec.report(rolled)
    for steps, batch in ((8, 2), (13, 3), (50, 1)):
        same(model, rolled, inputs(steps, batch))
    (graphs,) = unit_of(rolled).graphs.values()
    assert len(graphs) == 1 and len(graphs[0].graph.nodes) < 80
    for steps in (1, 2, 4):
        same(model, rolled, inputs(steps))


WORDS = {
    "squashed": "tanh of the carried value (rolled.py:{0})",
    "squared": "a product of the carried value with what is computed from it (rolled.py:{0})",
    "mixed": "matmul of the carried value (rolled.py:{0})",
    "through_a_layer": "two (Linear) of the carried value (rolled.py:{0})",
    "gru": "a product of the carried value with what is computed from it (rolled.py:{1})",
    "lstm": "values that are carried depend on each other (rolled.py:{0}, rolled.py:{1})",
    "every_second": "a number in it is not one step further each time: 0, 0, 1, 1, 2 ... (rolled.py:{0})",
    "two_back": "its steps do not hang together in the same way (rolled.py:{0})",
    "rounded": "the carried value is rounded at every step (rolled.py:{0})",
    "cut_off": "detach of the carried value (rolled.py:{0})",
    "noisy": "it draws random numbers at every step (rolled.py:{0})",
    "maximum": "maximum of the carried value (rolled.py:{0})",
    "reads_what_it_writes": "it reads what it writes (rolled.py:{0})",
    "aliased": "imul writes in place at every step (rolled.py:{0})",
    "by_a_cell": "gru (GRUCell) of the carried value (rolled.py:{0})",
    "one_step_differs": "step 6 of it is not like the others",
}


@pytest.mark.parametrize("name", TRAPS)
def test_what_is_no_recurrence_stays_with_the_reason(name):
    model = Looped(TRAPS[name])
    rolled = gatec.reroll(model, inputs(13))
    (edit,) = gatec.report(rolled).edits
    code = TRAPS[name].__code__
    lines = range(body(code), body(code) + 9)
    assert edit.verdict == "left" and unit_of(rolled) is None
    wanted = WORDS[name].format(*lines)
    said = re.sub(r"[\w./]*/rolled\.py", "rolled.py", edit.why)
    assert re.search(r"the loop of \d+ steps at rolled\.py:\d+: " + re.escape(wanted), said), said


def body(code):
    """The first line inside the loop."""
    lines = inspect.getsource(code).splitlines()
    return code.co_firstlineno + next(i for i, line in enumerate(lines) if line.strip().startswith("for ")) + 1


def least_of(m, x, a):
    h, out = torch.zeros_like(x[:, 0]), []
    for t in range(min(int(x.shape[1]), 12)):
        h = a[:, t] * h + x[:, t]
        out.append(h)
    return torch.stack(out, 1)


def forgets_at_times(m, x, a):
    h, out = torch.zeros_like(x[:, 0]), []
    for t in range(x.shape[1]):
        if t % 16 == 15:
            h = torch.zeros_like(h)
        h = a[:, t] * h + x[:, t]
        out.append(h)
    return torch.stack(out, 1)


def around(m, x, a):
    h, out = torch.zeros_like(x[:, 0]), []
    for t in range(x.shape[1]):
        h = a[:, t % 13] * h + x[:, t]
        out.append(h)
    return torch.stack(out, 1)


@pytest.mark.parametrize("loop", [least_of, forgets_at_times, around])
def test_steps_that_may_look_at_their_number_are_guarded_by_the_lengths_that_were_compared(loop):
    model = Looped(loop)
    rolled = gatec.reroll(model, inputs(8))
    assert "one graph for every length up to 11" in gatec.report(rolled).edits[0].note
    for steps in (8, 11, 20, 9, 40, 8):
        same(model, rolled, inputs(steps))


def test_a_converted_copy_survives_a_copy_and_training():
    model = Looped(LOOPS["layers_inside"])
    rolled = gatec.reroll(model, inputs(8))
    twin = copy.deepcopy(rolled)
    same(model, twin, inputs(11))
    twin.train(), model.train()
    same(model, twin, inputs(11))
    with torch.no_grad():
        assert torch.equal(twin(*inputs(9)), rolled(*inputs(9)))
    assert rolled.state_dict().keys() == model.state_dict().keys()


def test_rolling_twice_is_rolling_once():
    rolled = gatec.reroll(gatec.reroll(Looped(LOOPS["listed"]), inputs(8)), inputs(8))
    assert [e.why for e in gatec.report(rolled).edits] == ["its loops were rolled already"]


def test_no_loop_is_no_edit():
    assert gatec.report(gatec.reroll(nn.Sequential(nn.Linear(5, 5)), torch.randn(2, 5))).edits == ()


def test_half_precision_keeps_its_state_in_float32():
    torch.set_default_dtype(torch.float32)
    model = Looped(LOOPS["unsqueezed"]).bfloat16()
    given = [x.bfloat16() for x in inputs(200)]
    rolled, truth = gatec.reroll(model, [x[:, :8] for x in given]), model(*(x.double() for x in given))
    with torch.no_grad():
        ours, theirs = ((m(*given) - truth).abs().max() for m in (rolled, model))
    assert ours <= theirs


def test_states_that_take_too_much_memory_stay_a_loop(monkeypatch):
    monkeypatch.setattr(sys.modules["gatec.reroll.roll"], "MOST", 100)
    (edit,) = gatec.report(gatec.reroll(Looped(LOOPS["listed"]), inputs(8))).edits
    assert "its states at all steps would take" in edit.why


TINY = {"vocab_size": 100, "hidden_size": 32}
MODELS = {
    "recurrent_gemma": {"num_hidden_layers": 3, "num_attention_heads": 4, "lru_width": 32, "intermediate_size": 64},
    "mamba": {"num_hidden_layers": 2, "state_size": 8},
    "falcon_mamba": {"num_hidden_layers": 2, "state_size": 8},
}


@pytest.mark.parametrize("name", some(MODELS))
@pytest.mark.filterwarnings("ignore")
def test_real_models(name):
    torch.set_default_dtype(torch.float32)
    transformers = pytest.importorskip("transformers")
    config = transformers.AutoConfig.for_model(name, **TINY, **MODELS[name])
    model = transformers.AutoModelForCausalLM.from_config(config).eval()
    rolled = gatec.reroll(model, torch.arange(8)[None])
    edits = gatec.report(rolled).edits
    assert edits and all(e.verdict == "put" and "one graph for every length" in e.note for e in edits)
    ids = torch.randint(0, 100, (2, 33))
    with torch.no_grad():
        torch.testing.assert_close(
            rolled(ids, use_cache=False).logits, model(ids, use_cache=False).logits, atol=1e-4, rtol=1e-4
        )


def test_reroll_is_a_word_of_pipelines(tmp_path):
    model, given = Looped(LOOPS["layers_inside"]), inputs(8)
    assert [e.verdict for e in gatec.why(model, "reroll", inputs=given)] == ["put"]
    rolled = gatec.convert(model, "reroll", inputs=given)
    same(model, rolled, inputs(20))
    loaded = gatec.load(gatec.save(rolled, tmp_path), Looped(LOOPS["layers_inside"]), inputs=given)
    same(model, loaded, inputs(20))
    with pytest.raises(gatec.GatecError, match=r"^gatec: reroll without options\n  found x$"):
        gatec.convert(model, "reroll(x=1)", inputs=given)
    with pytest.raises(gatec.GatecError, match="tanh of the carried value"):
        gatec.convert(Looped(TRAPS["squashed"]), "reroll", inputs=given)
