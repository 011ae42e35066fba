"""GradientRouting: two losses, two optimizers, and no gradient of one in the part of the other."""

# ruff: noqa: E501 - one case per line

import importlib.util
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import gatec

X, Y = torch.linspace(-2, 2, 160).reshape(20, 8).double(), torch.linspace(-1, 1, 80).reshape(20, 4).double().tanh()


def mlp(passes="wrap"):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 16), nn.GELU(), nn.Linear(16, 4)).double()
    return gatec.convert(model, passes, inputs=X)


def parts(model):
    gates = gatec.gate_parameters(model)
    ids = {id(p) for p in gates}
    return gates, [p for p in model.parameters() if id(p) not in ids]


def routed(model, kind=torch.optim.SGD, **options):
    gates, others = parts(model)
    return gatec.GradientRouting(model, kind(gates, 0.3), kind(others, 0.1), **options)


def main_loss(model, x=X, y=Y):
    return F.mse_loss(model(x), y)


def gate_loss(model, x=X, y=Y):
    return main_loss(model, x, y) * 3 + sum(p.sigmoid().sum() for p in gatec.gate_parameters(model))


PASSES = ["wrap", "wrap,prune", "moe(experts=4,top_k=2)", "glu"]


@pytest.mark.parametrize("passes", PASSES)
def test_no_gradient_leaks(passes):
    model, other = mlp(passes), mlp(passes)
    routing = routed(model)
    gates, others = parts(model)
    wanted = torch.autograd.grad(gate_loss(other), parts(other)[0], allow_unused=True, materialize_grads=True)
    routing.step(lambda: gate_loss(model), lambda: main_loss(model))
    for gate, twin, grad in zip(gates, parts(other)[0], wanted, strict=True):
        assert torch.equal(torch.zeros_like(gate) if gate.grad is None else gate.grad, grad)
        twin.data.copy_(gate.data)
    for p, grad in zip(others, torch.autograd.grad(main_loss(other), parts(other)[1]), strict=True):
        assert torch.equal(p.grad, grad)


def test_the_second_pass_sees_the_new_gates():
    model = mlp()
    seen = []
    before = [g.detach().clone() for g in parts(model)[0]]
    weights = [p.detach().clone() for p in parts(model)[1]]

    def main():
        seen.append(not any(torch.equal(a, b) for a, b in zip(before, parts(model)[0], strict=True)))
        seen.append(all(torch.equal(a, b) for a, b in zip(weights, parts(model)[1], strict=True)))
        return main_loss(model)

    first, second = routed(model).step(lambda: gate_loss(model), main)
    assert seen == [True, True] and not first.requires_grad and not second.requires_grad


def test_accumulated_batches_are_one_large_batch():
    one, four = mlp(), mlp()
    routed(one).step(lambda: F.mse_loss(one(X), Y), lambda: F.mse_loss(one(X), Y))
    routing = routed(four, every=4)
    for _ in range(2):
        before = [p.clone() for p in four.parameters()]
        for i in range(4):
            assert all(torch.equal(a, b) for a, b in zip(before, four.parameters(), strict=True))
            routing.step(lambda i=i: F.mse_loss(four(X[i::4]), Y[i::4]), lambda i=i: F.mse_loss(four(X[i::4]), Y[i::4]))
    assert not any(torch.equal(a, b) for a, b in zip(before, four.parameters(), strict=True))
    single = mlp()
    routing = routed(single, every=4)
    for i in range(4):
        routing.step(lambda i=i: F.mse_loss(single(X[i::4]), Y[i::4]), lambda i=i: F.mse_loss(single(X[i::4]), Y[i::4]))
    for a, b in zip(parts(one)[0], parts(single)[0], strict=True):
        assert torch.allclose(a, b, rtol=0, atol=1e-14)  # the weights' pass of each batch saw the gates from before


def test_each_gradient_is_clipped_by_its_own_norm():
    model = mlp()
    routed(model, clip=1e-3).step(lambda: gate_loss(model) * 1e6, lambda: main_loss(model) * 1e6)
    for part in parts(model):
        norm = torch.stack([p.grad.norm() for p in part]).norm()
        assert abs(float(norm) - 1e-3) < 1e-6
    seen = []
    routed(model, clip=seen.append).step(lambda: gate_loss(model), lambda: main_loss(model))
    assert [len(s) for s in seen] == [len(p) for p in parts(model)]


def test_a_scaler_of_mixed_precision_steps_both():
    plain, scaled = mlp().float(), mlp().float()
    x, y = X.float(), Y.float()
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    for model, options in ((plain, {}), (scaled, {"scaler": scaler})):
        routing = routed(model, clip=0.5, **options)
        for _ in range(3):
            routing.step(lambda m=model: gate_loss(m, x, y), lambda m=model: main_loss(m, x, y))
    for a, b in zip(plain.parameters(), scaled.parameters(), strict=True):
        assert torch.allclose(a, b, rtol=1e-5, atol=1e-6)


def test_a_step_that_overflows_is_left_out():
    model = mlp()
    before = [p.detach().clone() for p in model.parameters()]
    routed(model, scaler=torch.amp.GradScaler("cpu")).step(
        lambda: gate_loss(model) * float("inf"), lambda: main_loss(model) * float("inf")
    )
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))


def test_gates_that_gatec_did_not_put():
    model = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4)).double()
    gates = [model[0].bias]
    rest = [p for p in model.parameters() if p is not gates[0]]
    routing = gatec.GradientRouting(model, torch.optim.Adam(gates), torch.optim.Adam(rest), gates=gates)
    before = [p.detach().clone() for p in model.parameters()]
    routing.step(lambda: main_loss(model), lambda: main_loss(model))
    assert not any(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))


def wrong(build):
    with pytest.raises(gatec.GatecError) as caught:
        build()
    return str(caught.value)


def test_what_does_not_part_the_gates_is_refused_in_words():
    model, sgd = mlp(), torch.optim.SGD
    gates, others = parts(model)
    build = lambda a, b, **o: lambda: gatec.GradientRouting(model, sgd(a, 0.1), sgd(b, 0.1), **o)  # noqa: E731
    hint = (
        "\n  where Sequential\n  try   gatec.gate_parameters(model) are the gates; the rest is for the other optimizer"
    )
    assert wrong(build(others, others)) == f"gatec: an optimizer of gates alone\n  found 0.weight in it{hint}"
    assert (
        wrong(build(gates, model.parameters()))
        == f"gatec: an optimizer without gates\n  found 0.feature_gate in it{hint}"
    )
    assert wrong(build(gates, others, every=0)) == "gatec: a number of calls for each step, 1 or more\n  found 0"
    for gate in gates:
        gate.requires_grad_(False)
    assert (
        wrong(build(gates, others))
        == "gatec: an optimizer of gates\n  found one without parameters that can learn\n  where Sequential"
    )
    plain = nn.Linear(4, 4)
    assert wrong(lambda: gatec.GradientRouting(plain, sgd(plain.parameters(), 1), sgd(plain.parameters(), 1))) == (
        'gatec: a model with gates\n  found none in Linear\n  try   gatec.convert(model, "wrap"), or gates=[...]'
    )


def test_a_loss_without_gradient_is_refused_in_words():
    model = mlp()
    words = "gatec: a loss that depends on the gates\n  found one without a gradient\n  try   compute it from the model's output inside the function, with gradients enabled"
    assert wrong(lambda: routed(model).step(lambda: torch.zeros(()), lambda: main_loss(model))) == words


def test_distributed_data_parallel_is_refused_in_words():
    model = mlp()
    outer = object.__new__(nn.parallel.DistributedDataParallel)
    nn.Module.__init__(outer)
    outer.module = model
    gates, others = parts(model)
    words = wrong(lambda: gatec.GradientRouting(outer, torch.optim.SGD(gates, 1), torch.optim.SGD(others, 1)))
    assert words.startswith(
        "gatec: a model whose gradients may be taken in part\n  found DistributedDataParallel, which waits for all of them\n"
    )


def test_inside_accelerate():
    accelerate = pytest.importorskip("accelerate")
    accelerator = accelerate.Accelerator(cpu=True)
    model, other = mlp(), mlp()
    gates, others = parts(model)
    prepared, one, two = accelerator.prepare(model, torch.optim.SGD(gates, 0.3), torch.optim.SGD(others, 0.1))
    routing = gatec.GradientRouting(prepared, one, two, backward=accelerator.backward)
    plain = routed(other)
    for _ in range(3):
        routing.step(lambda: gate_loss(prepared), lambda: main_loss(prepared))
        plain.step(lambda: gate_loss(other), lambda: main_loss(other))
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), other.parameters(), strict=True))


@pytest.mark.filterwarnings("ignore")
def test_inside_lightning():
    lightning = pytest.importorskip("pytorch_lightning")

    class Task(lightning.LightningModule):
        def __init__(self):
            super().__init__()
            self.model, self.automatic_optimization = mlp(), False

        def configure_optimizers(self):
            gates, others = parts(self.model)
            return torch.optim.SGD(gates, 0.3), torch.optim.SGD(others, 0.1)

        def on_fit_start(self):
            self.routing = gatec.GradientRouting(self.model, *self.optimizers(), backward=self.manual_backward)

        def training_step(self, batch, _):
            x, y = batch
            self.routing.step(lambda: gate_loss(self.model, x, y), lambda: main_loss(self.model, x, y))

    task, other = Task(), mlp()
    data = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(X, Y), batch_size=5)
    quiet = {
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
    }
    lightning.Trainer(max_epochs=1, accelerator="cpu", **quiet).fit(task, data)
    plain = routed(other)
    for x, y in data:
        plain.step(lambda x=x, y=y: gate_loss(other, x, y), lambda x=x, y=y: main_loss(other, x, y))
    assert all(torch.equal(a, b) for a, b in zip(task.model.parameters(), other.parameters(), strict=True))


def test_gates_on_inputs_find_the_pixels_among_noise():
    pytest.importorskip("sklearn")
    spec = importlib.util.spec_from_file_location(
        "feature_gates", Path(__file__).parent.parent / "examples" / "feature_gates.py"
    )
    example = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(example)
    ranked, right = example.run(0, *example.WAYS["routed"])
    alone, less = example.run(0, *example.WAYS["no gates"])
    assert ranked > 0.9 > alone and right > 0.9 > less
