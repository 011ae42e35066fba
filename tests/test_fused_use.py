"""A fused model under everything that users do with a model: the same numbers as before it was fused."""

import contextlib
import copy
import io
import pickle
import sys
import types

import pytest
import torch
from sampled import some
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint

import gatec
from gatec.verify import distance

EXACT, GRADIENT = 1e-6, 1e-5


class Gated(nn.Module):
    def __init__(self, norm=None):
        super().__init__()
        self.gate, self.up, self.down = nn.Linear(8, 16, bias=False), nn.Linear(8, 16), nn.Linear(16, 8)
        self.norm = norm or nn.Identity()

    def forward(self, x):
        return self.down(F.silu(self.gate(x)) * self.norm(self.up(x)))


class Recurrent(nn.Module):
    """A state for each batch and channel, from the first position to the last."""

    def __init__(self):
        super().__init__()
        self.gate, self.up, self.down = nn.Linear(8, 16), nn.Linear(8, 16), nn.Linear(16, 8)

    def forward(self, x):
        kept = torch.sigmoid(self.gate(x))
        return self.down(gatec.linear_recurrence(kept, (1 - kept) * self.up(x), dim=max(x.ndim - 2, 0)))


MODELS = {"pointwise": Gated, "row": lambda: Gated(nn.RMSNorm(16)), "scan": Recurrent}


@pytest.fixture(params=MODELS, scope="module")
def pair(request):
    """A model and its fused copy."""
    torch.manual_seed(0)
    model = MODELS[request.param]()
    fused = gatec.fuse(model, torch.randn(2, 3, 8), everywhere=True)
    assert any(e.verdict == "put" for e in gatec.report(fused).edits)
    (kernel,) = gatec.kernels_of(fused).values()
    assert ("rowwise.py" in kernel.source) == (request.param == "row")
    return model, fused


@pytest.fixture
def x():
    return torch.randn(2, 3, 8, generator=torch.Generator().manual_seed(1))


def gradients(model, x, run=None):
    """The result, and the gradients of the input and of all parameters."""
    leaf = x.detach().clone().requires_grad_()
    out = (model if run is None else run)(leaf)
    return [out, *torch.autograd.grad(out.square().sum(), [leaf, *model.parameters()])]


def close(found, wanted, bound=GRADIENT):
    for mine, theirs in zip(found, wanted, strict=True):
        assert mine.shape == theirs.shape and mine.dtype == theirs.dtype
        assert not theirs.numel() or distance(mine, theirs) < bound


def ran_fused(fused):
    return vars(fused)["_gatec"].fallbacks == 0


# -- compilers --------------------------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore")  # inductor's own
@pytest.mark.parametrize(
    "pair, backend",
    some([(m, b) for b in ("aot_eager", "inductor") for m in MODELS], of=2),  # the scan by inductor is swept
    indirect=["pair"],
)
def test_torch_compile_without_a_break_forward_and_backward(pair, x, backend):
    model, fused = pair
    torch._dynamo.reset()
    compiled = torch.compile(fused, backend=backend, fullgraph=True, dynamic=True)
    for rows in (3, 5):
        given = x[:, :1].repeat(1, rows, 1)
        close(gradients(fused, given, compiled), gradients(model, given))


def test_torch_export_keeps_the_op_and_any_batch(pair, x):
    model, fused = pair
    auto = torch.export.Dim.AUTO
    program = torch.export.export(fused, (x,), dynamic_shapes=({0: auto, 1: auto},))
    assert any(str(n.target).startswith("gatec.") for n in program.graph.nodes)
    other = torch.randn(5, 7, 8)
    assert distance(program.module()(other), model(other)) < EXACT


# -- what changes the types or the graph of gradients ------------------------------------------------------------------


def test_autocast_rounds_as_the_model_does(pair, x):
    model, fused = pair
    with torch.autocast("cpu", torch.bfloat16):
        found, wanted = gradients(fused, x), gradients(model, x)
    assert torch.equal(found[0], wanted[0]) and found[0].dtype == torch.bfloat16
    close(found, wanted, 4 * torch.finfo(torch.bfloat16).eps)


@pytest.mark.parametrize("reentrant", [True, False])
def test_gradient_checkpointing(pair, x, reentrant):
    model, fused = pair
    leaf = x.clone().requires_grad_()
    copied = copy.deepcopy(fused)
    checkpoint(copied, leaf, use_reentrant=reentrant).square().sum().backward()
    close([leaf.grad, *(p.grad for p in copied.parameters())], gradients(model, x)[1:])


def twice(model, x):
    """Gradients of the squared length of a gradient."""
    leaf = x.clone().requires_grad_()
    (first,) = torch.autograd.grad(model(leaf).square().sum(), leaf, create_graph=True)
    weights = [p for n, p in model.named_parameters() if n != "down.bias"]
    return torch.autograd.grad(first.square().sum(), [leaf, *weights])


def test_a_gradient_of_a_gradient(pair, x):
    model, fused = pair
    close(twice(fused, x), twice(model, x))


def test_a_third_derivative_and_operands_that_depend_on_each_other():
    class Self(nn.Module):
        def forward(self, x):
            return torch.sigmoid(2 * x.sin()) * x.cos()

    model, x = Self().double(), torch.rand(5, dtype=torch.double, requires_grad=True)
    fused = gatec.fuse(model, torch.rand(5, dtype=torch.double), everywhere=True)
    assert ran_fused(fused) and "put" in str(gatec.report(fused))
    found = []
    for m in (model, fused):
        value = m(x)
        for _ in range(3):
            (value,) = torch.autograd.grad(value.sum(), x, create_graph=True)
        found.append(value)
    assert torch.allclose(*found, rtol=1e-10)
    assert torch.autograd.gradgradcheck(fused, (x,))


TRANSFORMS = {
    "grad": lambda m, x: torch.func.grad(lambda v: m(v).square().sum())(x),
    "vmap": lambda m, x: torch.vmap(m)(x),
    "jacrev": lambda m, x: torch.func.jacrev(m)(x[0]),
    "jacfwd": lambda m, x: torch.func.jacfwd(m)(x[0]),
    "hessian": lambda m, x: torch.func.hessian(lambda v: m(v).square().sum())(x[0, 0]),
    "batched gradients": lambda m, x: torch.autograd.functional.jacobian(m, x, vectorize=True),
}


@pytest.mark.parametrize("transform", TRANSFORMS)
@pytest.mark.filterwarnings("ignore:`torch.jit.script:DeprecationWarning")  # torch's own, where forward mode begins
def test_function_transforms(pair, x, transform):
    model, fused = pair
    assert distance(TRANSFORMS[transform](fused, x), TRANSFORMS[transform](model, x)) < GRADIENT


def test_gradients_for_each_sample(pair, x):
    def each(model):
        def loss(parameters, sample):
            return torch.func.functional_call(model, parameters, (sample,)).square().sum()

        return torch.vmap(torch.func.grad(loss), (None, 0))(dict(model.named_parameters()), x)

    model, fused = pair
    close(each(fused).values(), each(model).values())


def test_inference_mode(pair, x):
    model, fused = pair
    with torch.inference_mode():
        assert distance(fused(x), model(x)) < EXACT
    close(gradients(fused, x), gradients(model, x))


# -- forms of tensors -------------------------------------------------------------------------------------------------

FORMS = {
    "transposed": lambda: torch.randn(3, 2, 8).transpose(0, 1),
    "every other": lambda: torch.randn(2, 3, 16)[..., ::2],
    "expanded": lambda: torch.randn(1, 1, 8).expand(2, 3, 8),
    "no rows": lambda: torch.randn(2, 0, 8),
    "no batch": lambda: torch.randn(0, 3, 8),
    "one row": lambda: torch.randn(8),
    "more dimensions": lambda: torch.randn(2, 1, 2, 3, 8),
}


@pytest.mark.parametrize("form", FORMS)
def test_any_strides_and_sizes(pair, form):
    model, fused = pair
    given = FORMS[form]()
    close(gradients(fused, given), gradients(model, given))


class Map(nn.Module):
    """A gate per channel of an image, and one number for all of it."""

    def __init__(self):
        super().__init__()
        self.gate, self.value, self.alpha = nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 1), nn.Parameter(torch.tensor(0.3))

    def forward(self, x):
        return x + torch.tanh(self.alpha) * (torch.sigmoid(self.gate(x)) * self.value(x))


def test_channels_last_and_an_operand_without_dimensions():
    model = Map()
    x = torch.randn(2, 4, 3, 5).to(memory_format=torch.channels_last)
    fused = gatec.fuse(model, x, everywhere=True)
    assert any(e.verdict == "put" for e in gatec.report(fused).edits)
    found, wanted = gradients(fused, x), gradients(model, x)
    close(found, wanted)
    assert [g.stride() for g in found] == [g.stride() for g in wanted]


# -- what is done to modules ------------------------------------------------------------------------------------------


def saved(model):
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


@pytest.mark.parametrize(
    "again", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m)), saved], ids=["copy", "pickle", "torch.save"]
)
def test_copies_and_files_of_a_fused_model(pair, x, again):
    model, fused = pair
    copied = again(fused)
    close(gradients(copied, x), gradients(model, x))
    assert all(p is not q for p, q in zip(copied.parameters(), fused.parameters(), strict=True))


def test_state_dicts_go_both_ways(pair, x):
    model, fused = pair
    assert list(model.state_dict()) == list(fused.state_dict())
    other = copy.deepcopy(model)
    with torch.no_grad():
        other.gate.weight.mul_(2)
    copied = copy.deepcopy(fused)
    copied.load_state_dict(other.state_dict())
    assert distance(copied(x), other(x)) < EXACT


def test_hooks_run_once_and_in_order(pair, x):
    """What distributed training hangs on a model: hooks on parameters, and around forward and backward."""
    seen = {}
    for name, model in zip(("model", "fused"), map(copy.deepcopy, pair), strict=True):
        calls = seen[name] = []
        for n, p in model.named_parameters():
            p.register_post_accumulate_grad_hook(lambda p, n=n, calls=calls: calls.append(n))
        model.register_forward_hook(lambda *a, calls=calls: calls.append("forward"))
        model.gate.register_forward_hook(lambda *a, calls=calls: calls.append("gate"))
        model.register_full_backward_hook(lambda *a, calls=calls: calls.append("backward"))
        model(x.clone().requires_grad_()).sum().backward()
    assert sorted(seen["fused"]) == sorted(seen["model"])
    assert seen["fused"][:2] == seen["model"][:2] == ["gate", "forward"]


# -- on a device ------------------------------------------------------------------------------------------------------


class Ran(TorchDispatchMode):
    """Every operator that runs."""

    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.names.append(function.overloadpacket.__name__)
        return function(*args, **kwargs or {})


class Started:
    """Stands in for a compiled kernel: notes the device it is started on."""

    def __init__(self, devices, log):
        self.devices, self.log = devices, log

    def __getitem__(self, grid):
        assert all(n > 0 for n in grid)
        return lambda *args, **options: self.log.append(self.devices[-1])


@pytest.fixture
def launched(monkeypatch):
    """Run a kernel's launchers on tensors of a device that is not here; fake tensors refuse whatever waits for it."""

    def run(kernel, device, shapes):
        devices, log = [None], []

        @contextlib.contextmanager
        def guard(tensor):
            devices.append(tensor.device)
            yield
            devices.pop()

        module = types.ModuleType("launched")
        monkeypatch.setitem(sys.modules, "launched", module)
        exec(compile(kernel.source, kernel.load().__file__, "exec"), vars(module))
        for name in list(vars(module)):
            if name.endswith(("_forward", "_backward", "_reduce", "_apply", "_fold", "carries")):
                setattr(module, name, Started(devices, log))
        monkeypatch.setattr(torch.cuda, "device_of", guard)
        with FakeTensorMode(), Ran() as ran:
            operands = [torch.empty(s, device=device) for s in shapes]
            made = len(ran.names)
            out = module.forward(*operands)
            grads = module.backward(torch.empty_like(out), *operands)
        assert all(t.device == torch.device(device) for t in (out, *grads))
        return log, ran.names[made:]

    return run


SHAPES = {"gemm": [(4, 8), (16, 8), (4, 16)], "rowwise": [(4, 16), (4, 16), (16,)], "scan": [(2, 4, 16), (2, 4, 16)]}


def test_a_launch_waits_for_nothing_and_runs_on_the_device_of_its_operands(pair, launched):
    """What CUDA graphs and several devices need."""
    (kernel,) = gatec.kernels_of(pair[1]).values()
    maker = kernel.source.partition(".py; do not edit")[0].rpartition("/")[2]
    log, ran = launched(kernel, "cuda:1", SHAPES[maker])
    assert log == [torch.device("cuda:1")] * (2 if maker != "scan" else 9)
    products = {"mm", "addmm", "t", "split", "chunk", "transpose", "_reshape_alias"}
    states = {"zeros_like", "narrow", "slice", "cat", "zeros"}  # those before each step
    assert set(ran) <= {"empty", "empty_like", "sum", "_to_copy", "view", "device", *products, *states}
