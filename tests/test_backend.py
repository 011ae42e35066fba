"""Dynamo as a second front end: it finds what the tracer finds, trains like eager, and compiles no graph twice."""

import copy
import importlib.metadata
import pickle
from pathlib import Path

import pytest
import tomllib
import torch
from test_fuse import POINTWISE
from test_recognise import GATES, LOOKALIKES, Block, X
from torch import nn
from torch._dynamo import register_backend
from torch._dynamo.testing import CompileCounterWithBackend
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

import gatec
from gatec.backend import compiled, front
from gatec.inputs import example_inputs
from gatec.lower import EAGER, NOTHING
from gatec.verify import distance, tensors
from gatec.zoo import load

EVERYWHERE = {"everywhere": True}
BOTH = {"everywhere": True, "inner": "aot_eager"}


@pytest.fixture(autouse=True)
def fresh():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


class MLP(nn.Module):
    def __init__(self):
        super().__init__()
        self.gate, self.up, self.down = nn.Linear(8, 16), nn.Linear(8, 16), nn.Linear(16, 8)
        self.scale = nn.Parameter(torch.ones(8))

    def forward(self, x):
        return x + self.scale * self.down(F.silu(self.gate(x)) * self.up(x))


def stack(n=2):
    return nn.Sequential(*(MLP() for _ in range(n)))


def compile_(model, **options):
    return torch.compile(model, backend=gatec.backend, options=options or None)


def gates(report=None):
    return [(g.kind, g.signal, g.site) for g in (report or gatec.backend.report()).gates]


def said(site=""):
    return [(e.verdict, e.why) for e in gatec.backend.report().edits if e.site == site]


def same_training(model, run, *inputs, tolerance=1e-5):
    """Outputs and the gradients of every parameter and input, against the model as it is."""
    twin = copy.deepcopy(model)
    mine, theirs = ([i.detach().clone().requires_grad_() for i in inputs] for _ in range(2))
    found, wanted = run(*mine), twin(*theirs)
    found.square().sum().backward()
    wanted.square().sum().backward()
    pairs = [(found, wanted), *((a.grad, b.grad) for a, b in zip(mine, theirs, strict=True))]
    pairs += [(a.grad, b.grad) for a, b in zip(model.parameters(), twin.parameters(), strict=True)]
    assert all((a is None) == (b is None) for a, b in pairs)
    assert max(distance(a, b) for a, b in pairs if a is not None) < tolerance


# -- recognition ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [*GATES, *LOOKALIKES])
def test_dynamo_finds_what_the_tracer_finds(name):
    model = Block(GATES[name][0] if name in GATES else LOOKALIKES[name]).eval()
    assert torch.equal(compile_(model)(X), model(X))
    report = gatec.backend.report()
    assert [(g.kind, g.signal, g.where) for g in report.gates] == [
        (g.kind, g.signal, g.where) for g in gatec.scan(model, X).gates
    ]


def test_a_find_names_its_module_its_line_and_its_dynamic_size():
    x = torch.randn(4, 8)
    torch._dynamo.mark_dynamic(x, 0)
    compile_(nn.ModuleDict({"block": stack(1)})["block"])(x)
    glu, scale = gatec.backend.report().gates
    assert (glu.kind, glu.site, scale.kind, scale.site) == ("glu", "0", "residual-scale", "0")
    assert glu.where.rpartition("/")[2].startswith("test_backend.py:")
    assert isinstance(glu.shape[0], str) and glu.shape[1] == 16
    assert str(glu) in str(gatec.backend.report())


def test_equal_names_in_two_models_are_two_parameters():
    one, two = MLP(), MLP()

    def both(x):
        return one.gate(x) * two.gate(x), F.silu(one.up(x)) * two.up(x)

    compile_(both)(torch.randn(2, 8))
    assert [g.kind for g in gatec.backend.report().gates] == ["glu", "glu"]


def test_what_a_checkpoint_recomputes_is_read_and_fused():
    model = stack(2)

    def run(x):
        for layer in model:
            x = checkpoint(layer, x, use_reentrant=False)
        return x

    for inner in ("eager", "aot_eager"):
        torch._dynamo.reset()
        model.zero_grad()
        same_training(model, compile_(run, everywhere=True, inner=inner), torch.randn(3, 8))
        assert [e.verdict for e in gatec.backend.report().edits] == ["put"] * 4


class Twice(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return torch.sigmoid(x) * x.sin()

    @staticmethod
    def backward(ctx, grad):
        (x,) = ctx.saved_tensors
        return grad * torch.sigmoid(x) * x.cos()


@pytest.mark.filterwarnings("ignore:.* should not be instantiated:DeprecationWarning")  # Dynamo does it
def test_the_formula_of_a_gradient_is_no_gate():
    x = torch.randn(3, 8, requires_grad=True)
    compile_(Twice.apply)(x).sum().backward()
    report = gatec.backend.report()
    assert report.gates == []
    assert [e.why for e in report.edits] == ["autograd_function_apply is one operator: what is inside it was not read"]


# -- fusion -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", POINTWISE)
def test_compiled_trains_like_eager(name):
    model = Block(GATES[name][0])
    same_training(model, compile_(model, **BOTH), X)
    assert [e.verdict for e in gatec.backend.report().edits] == ["put"]


@pytest.mark.parametrize("inner", ["eager", lambda gm, inputs: gm.forward], ids=["eager", "a function"])
def test_every_inner_backend_trains(inner):
    model = stack()
    same_training(model, compile_(model, everywhere=True, inner=inner), torch.randn(3, 8))
    assert [e.verdict for e in gatec.backend.report().edits] == ["put"] * 4


def test_on_a_cpu_the_graph_stays_as_it_was_captured():
    seen = []
    model = stack(1)
    x = torch.randn(3, 8)

    def inner(gm, inputs):
        seen.append(gm.code)
        return gm.forward

    assert torch.equal(compile_(model, inner=inner)(x), model(x))
    torch._dynamo.reset()
    torch.compile(model, backend=inner)(x)
    assert seen[0] == seen[1]
    torch._dynamo.reset()
    compile_(model)(x)
    assert said("0") == [("left", EAGER), ("left", EAGER)]
    assert list(gatec.backend.report().graphs[0].kernels) == ["glu_silu", "residual_scale_learned"]


def test_inductor_keeps_its_own_fusion():
    found = []

    def capture(gm, inputs):
        found.append(compiled.fused(gm, False, front.INDUCTOR))
        return gm.forward

    torch.compile(stack(1), backend=capture)(torch.randn(3, 8))
    assert {e.why for e in found[0].edits} == {
        "left to inductor, which fuses it; everywhere=True puts gatec's op in its place"
    }


def test_a_gate_with_nothing_around_it_is_left_with_that_reason():
    compile_(Block(GATES["F.glu"][0]), **EVERYWHERE)(X)
    assert said() == [("left", NOTHING)]


@pytest.mark.parametrize("inner", ["eager", "aot_eager"])
@pytest.mark.parametrize("inside", [True, False], ids=["inside", "around"])
def test_autocast(inner, inside):
    model = Block(lambda m, x: m.out(F.silu(m.a(x)) * m.b(x)))

    def forward(x):
        with torch.autocast("cpu", torch.bfloat16):
            return model(x)

    run = compile_(forward if inside else model, everywhere=True, inner=inner)
    with torch.autocast("cpu", torch.bfloat16, enabled=not inside):
        found = run(X)
    assert found.dtype == torch.bfloat16
    assert distance(found, forward(X)) <= 2 * torch.finfo(torch.bfloat16).eps
    assert [e.verdict for e in gatec.backend.report().edits] == ["put"]


def written_between(m, x):
    x = m.b(x)
    gate = torch.sigmoid(2 * x)
    x += 1
    return gate * m.a(x)


def without_gradient(m, x):
    with torch.no_grad():
        gate = torch.sigmoid(m.a(x) * 2)
    return gate * m.b(x)


def half_in_autocast(m, x):
    with torch.autocast("cpu", torch.bfloat16):
        gate = torch.sigmoid(m.a(x)) * 2
    return gate * m.b(x)


@torch.library.custom_op("gatec_tests::bump", mutates_args={"x"})
def bump(x: torch.Tensor) -> None:
    x.add_(1)


def written_by_an_operator(m, x):
    x = x.detach() * 2
    gate = torch.sigmoid(2 * x)
    torch.ops.gatec_tests.bump(x)
    return gate * m.a(x)


@pytest.mark.parametrize("expression", [written_between, written_by_an_operator, without_gradient, half_in_autocast])
def test_nothing_moves_past_a_write_or_a_mode(expression):
    model = Block(expression)
    same_training(model, compile_(model, **EVERYWHERE), X)
    assert {g.kind for g in gatec.backend.report().gates} & {"glu", "product"}


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")  # of TwoTensor
def test_a_tensor_with_operators_of_its_own_keeps_them():
    from torch.testing._internal.two_tensor import TwoTensor

    model = Block(GATES["swiglu"][0])
    found = compile_(model, **BOTH)(TwoTensor(X, 2 * X))
    assert distance(found.a, model(X)) < 1e-6 and distance(found.b, model(2 * X)) < 1e-6
    assert said() == [("left", "an operand is a TwoTensor, which has operators of its own")]


def test_inside_a_function_transform_nothing_is_fused():
    model = Block(GATES["swiglu"][0])

    def forward(x):
        return model(torch.vmap(model.forward)(x))

    assert distance(compile_(forward, **EVERYWHERE)(X), model(model(X))) < 1e-6
    assert said() == [("left", "it is computed inside a torch.func transform"), ("put", "glu_silu")]


# -- sizes and caches ---------------------------------------------------------------------------------------------------


def graphs_of(model, xs, inner):
    torch._dynamo.reset()
    counter = CompileCounterWithBackend("eager")
    run = torch.compile(model, backend=counter) if inner is None else compile_(model, everywhere=True, inner=counter)
    for x in xs():
        assert distance(run(x), model(x)) < 1e-6
    return counter.frame_count


def lengths():
    return [torch.randn(b, t, 8) for b, t in ((2, 3), (3, 5), (4, 7), (2, 9), (1, 3), (2, 1))]


def marked():
    xs = [torch.randn(b, 3, 8) for b in (2, 3, 7)]
    for x in xs:
        torch._dynamo.mark_dynamic(x, 0)
    return xs


@pytest.mark.parametrize("xs", [lengths, marked])
@pytest.mark.parametrize("name", ["swiglu", "squeeze and excite", "packed"])
def test_no_more_graphs_than_without_gatec(name, xs):
    model = Block(GATES[name][0]).eval()
    assert graphs_of(model, xs, "gatec") == graphs_of(model, xs, None)


def test_sizes_that_depend_on_data():
    def masked(x):
        y = x[x[:, 0].nonzero()[:, 0]]
        return F.silu(lin(y)) * other(y)

    lin, other = nn.Linear(8, 8), nn.Linear(8, 8)
    with torch._dynamo.config.patch(capture_dynamic_output_shape_ops=True):
        run = compile_(masked, **BOTH)
        for n in (3, 5):
            x = torch.randn(n, 8)
            assert distance(run(x), masked(x)) < 1e-6
    assert {e.verdict for e in gatec.backend.report().edits} == {"put"}


def test_equal_regions_of_two_models_share_an_op():
    seen = []

    def inner(gm, inputs):
        seen.append({str(n.target) for n in gm.graph.nodes if "gatec" in str(n.target)})
        return gm.forward

    one = stack(2)
    for model in (one, copy.deepcopy(one)):
        torch._dynamo.reset()
        compile_(model, everywhere=True, inner=inner)(torch.randn(3, 8))
    assert seen[0] == seen[1] and len(seen[0]) == 2  # of four regions


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")  # asked by Dynamo
def test_a_graph_break_makes_two_graphs_that_are_both_read():
    def broken(m, x):
        y = F.silu(m.a(x)) * m.b(x)
        torch._dynamo.graph_break()
        return torch.sigmoid(m.a(y)) * m.b(y)

    model = Block(broken)
    same_training(model, compile_(model, **BOTH), X)
    first, second = (g for g in gatec.backend.report().graphs if g.gates)
    assert [g.signal for g in (*first.gates, *second.gates)] == ["silu", "sigmoid"]
    assert first.name.startswith("[") and "test_backend.py:" in first.name


def test_a_copied_model_and_a_reset_keep_one_report():
    run = compile_(stack(1))
    x = torch.randn(3, 8)
    run(x)
    copy.deepcopy(run)(x)
    assert len(gates()) in (2, 4)  # a copy may compile again; the report is the same one
    assert pickle.loads(pickle.dumps(gatec.backend)) is gatec.backend is copy.deepcopy(gatec.backend)
    torch._dynamo.reset()
    assert str(gatec.backend.report()) == "nothing compiled yet: call the compiled model"


def test_a_report_keeps_nothing_of_a_compilation():
    compile_(stack(1))(torch.randn(3, 8))
    for find in gatec.backend.report().gates:
        assert find.node.graph.owning_module is None
        assert all("val" not in n.meta for n in find.node.graph.nodes)


def test_torch_finds_the_backend_by_name():
    text = (Path(__file__).parents[1] / "pyproject.toml").read_text()
    ((name, value),) = tomllib.loads(text)["project"]["entry-points"]["torch_dynamo_backends"].items()
    found = importlib.metadata.EntryPoint(name, value, "torch_dynamo_backends").load()
    assert found is gatec.backend
    if name not in torch._dynamo.list_backends(None):  # gatec is not installed, only on the path
        register_backend(found, name=name)
    torch.compile(stack(1), backend="gatec")(torch.randn(3, 8))
    assert len(gates()) == 2


# -- what goes wrong ----------------------------------------------------------------------------------------------------


def test_a_graph_that_cannot_be_read_runs_and_the_report_says_why(monkeypatch):
    def fails(canon, **options):
        raise ZeroDivisionError("no such gate")

    monkeypatch.setattr(compiled, "finds", fails)
    model = stack(1)
    same_training(model, compile_(model, **BOTH), torch.randn(3, 8))
    (graph,) = gatec.backend.report().graphs
    assert graph.missed == "ZeroDivisionError: no such gate"
    assert str(graph).endswith("left as it was: ZeroDivisionError: no such gate")


def test_a_region_without_a_kernel_is_left_with_the_reason(monkeypatch):
    def fails(*args):
        raise gatec.GatecError("a function that it knows", found="sinc")

    for kind in ("pointwise", "gemm"):
        monkeypatch.setattr(f"gatec.kernels.{kind}.render", fails)
    monkeypatch.setattr("gatec.making._MADE", {})
    model = stack(1)
    same_training(model, compile_(model, **BOTH), torch.randn(3, 8))
    assert said("0") == [("left", "a function that it knows: sinc")] * 2


NO_BACKEND = """gatec: an inner backend that torch.compile knows
  found 'fastest'
  try   """
NO_OPTION = """gatec: options that gatec.backend has
  found colour
  try   "inner" and "everywhere"; with "inner": "inductor" also the options and the modes of inductor"""


@pytest.mark.parametrize(
    "options, message",
    [({"inner": "fastest"}, NO_BACKEND), ({"inner": "gatec"}, NO_BACKEND.replace("fastest", "gatec")), ({"colour": 1}, NO_OPTION)],
)  # fmt: skip
def test_an_option_that_is_not_there(options, message):
    with pytest.raises(torch._dynamo.exc.BackendCompilerFailed) as error:
        compile_(stack(1), **options)(torch.randn(3, 8))
    assert message in str(error.value)


def test_a_mode_belongs_to_inductor():
    with pytest.raises(torch._dynamo.exc.BackendCompilerFailed) as error:
        torch.compile(stack(1), backend=gatec.backend, mode="max-autotune")(torch.randn(3, 8))
    assert NO_OPTION.replace("colour", "mode='max-autotune'") in str(error.value)


# -- whole models -------------------------------------------------------------------------------------------------------


def llama():
    transformers = pytest.importorskip("transformers")
    config = transformers.LlamaConfig(
        hidden_size=32, intermediate_size=88, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
        vocab_size=64, pad_token_id=0, bos_token_id=1, eos_token_id=None,
    )  # fmt: skip
    return transformers.LlamaForCausalLM(config).eval()


def test_llama_forward_and_generate():
    model, tokens = llama(), torch.randint(2, 64, (2, 9))
    asked = {"max_new_tokens": 4, "do_sample": False, "attention_mask": torch.ones_like(tokens)}
    wanted = model(tokens, use_cache=False).logits
    written = model.generate(tokens, **asked)
    seen = [(g.kind, g.signal, g.site, g.where) for g in gatec.scan(model, {"input_ids": tokens}).gates]
    assert distance(compile_(model, **EVERYWHERE)(tokens, use_cache=False).logits, wanted) < 1e-6
    report = gatec.backend.report()
    assert [(g.kind, g.signal, g.site, g.where) for g in report.gates] == seen
    assert [(e.site, e.verdict) for e in report.edits] == [(f"model.layers.{i}.mlp", "put") for i in range(2)]
    model.forward = compile_(model.forward, **EVERYWHERE)
    assert torch.equal(model.generate(tokens, **asked), written)
    assert {e.verdict for e in gatec.backend.report().edits} == {"put"}


# -- minutes ------------------------------------------------------------------------------------------------------------


def compiles():
    """Why inductor cannot run here, or nothing."""
    try:
        torch.compile(lambda x: x + 1, backend="inductor")(torch.ones(2))
    except Exception as e:
        return f"inductor needs a C++ compiler here: {str(e).splitlines()[0]}"
    return ""


@pytest.mark.sweep
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("everywhere", [True, False])
def test_inductor_trains_like_eager(everywhere):
    if why := compiles():
        pytest.skip(why)
    model = stack()
    run = compile_(model, everywhere=everywhere, inner="inductor")
    for n in (2, 3, 5):
        model.zero_grad()
        same_training(model, run, torch.randn(n, 4, 8))
    report = gatec.backend.report()
    assert len(report.graphs) == 2  # the second holds for every size
    assert {(e.verdict, e.why) for e in report.edits if e.verdict == "left"} == (
        set() if everywhere else {("left", front.INDUCTOR)}
    )


@pytest.mark.sweep
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_the_caches_of_inductor_and_autograd_keep_our_ops(tmp_path, monkeypatch):
    if why := compiles():
        pytest.skip(why)
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    model, x = stack(1), torch.randn(3, 8)
    counters = torch._dynamo.utils.counters
    for wanted in ("autograd_cache_miss", "autograd_cache_hit"):
        torch._dynamo.reset()
        counters.clear()
        run = compile_(copy.deepcopy(model), everywhere=True, inner="inductor")
        run(x).sum().backward()
        assert counters["aot_autograd"][wanted] == 1
        assert not any("bypass" in name for name in (*counters["aot_autograd"], *counters["inductor"]))


@pytest.mark.sweep
@pytest.mark.filterwarnings("ignore")  # what these models warn of is theirs
@pytest.mark.parametrize(
    "name", ["timm:efficientnet_b0", "timm:mobilenetv3_small_050", "transformers:gpt_oss", "transformers:mixtral",
             "transformers:recurrent_gemma", "transformers:qwen3_next", "transformers:bamba", "transformers:modernbert"],
)  # fmt: skip
def test_models_of_others(name):
    model = load(name).eval()
    args, kwargs = example_inputs(model)

    def run(f):
        torch.manual_seed(0)
        found = f(*args, **kwargs)
        out = next(t for t in tensors(found) if t.is_floating_point())
        model.zero_grad()
        out.square().mean().backward()
        return out, {n: p.grad for n, p in model.named_parameters() if p.grad is not None}

    scanned = {(g.signal, g.site) for g in gatec.scan(copy.deepcopy(model)).gates}
    wanted, slopes = run(model)
    try:
        run(torch.compile(model, backend="aot_eager"))
    except RuntimeError as e:
        pytest.skip(f"aot_eager by itself fails: {e}")
    torch._dynamo.reset()
    found, grads = run(compile_(model, **BOTH))
    report = gatec.backend.report()
    assert not [g.missed for g in report.graphs if g.missed]
    masks = {("ne", site) for _, site in scanned}  # made from positions, which Dynamo knows to be constants
    assert scanned - masks <= {(g.signal, g.site) for g in report.gates}
    assert any(e.verdict == "put" for e in report.edits)
    assert distance(found, wanted) < 1e-4 and grads.keys() == slopes.keys()
    assert max(distance(grads[n], slopes[n]) for n in grads if slopes[n].abs().max() > 1e-8) < 1e-2
