"""Models and tensors of other kinds: meta, bf16, complex, sparse, quantised, wrapped, compiled."""

import warnings

import torch
from torch import nn
from torch.nn import functional as F

from odd import Block, X, call, made, odd, rows, under


class Plain(Block):
    def forward(self, x):
        return self.mlp(x) * torch.ones(8, dtype=x.dtype, device=x.device)


@odd(X.to("meta"), others=[rows(3).to("meta")])
def meta_model():
    return Plain().to("meta")


@odd(X.bfloat16(), others=[rows(3).bfloat16()])
def bf16_model():
    return Plain().bfloat16()


@odd(X.half(), others=[rows(3).half()])
def half_model():
    return Plain().half()


@odd(X.double(), others=[rows(3).double()])
def float64_model():
    return Plain().double()


@odd(X, others=[rows(3), X.bfloat16()])
class MixedPrecision(nn.Module):
    def __init__(self):
        super().__init__()
        self.up, self.norm, self.down = nn.Linear(8, 8).bfloat16(), nn.LayerNorm(8), nn.Linear(8, 8).bfloat16()

    def forward(self, x):
        return self.down(self.norm(self.up(x.bfloat16()).float()).to(self.down.weight.dtype)).type_as(x)


@odd(X, others=[X.to(torch.complex64), rows(3)])
class Complex(nn.Module):
    def __init__(self):
        super().__init__()
        self.filter = nn.Parameter(torch.randn(8, dtype=torch.complex64))

    def forward(self, x):
        y = torch.fft.fft(x) * self.filter
        return torch.fft.ifft(y).real, y.abs(), y.conj().angle(), torch.fft.irfft(torch.fft.rfft(y.real), n=x.size(-1))


@odd(X, others=[rows(4)])
class SparseBuffer(nn.Module):
    def __init__(self):
        super().__init__()
        self.register_buffer("adjacency", torch.eye(4).roll(1, 0).to_sparse())
        self.linear = nn.Linear(8, 8)

    def forward(self, x):
        return torch.sparse.mm(self.adjacency, self.linear(x))


@odd(
    made(lambda: (torch.eye(4).to_sparse(), X)),
    others=[made(lambda: (torch.eye(3).to_sparse(), rows(3))), call(torch.eye(4), X)],
)
class SparseInput(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(8, 8)

    def forward(self, adjacency, x):
        return adjacency @ self.linear(x) if adjacency.is_sparse else self.linear(x)


@odd(X, others=[rows(3)])
class SparseGradient(nn.Module):
    def __init__(self):
        super().__init__()
        self.table, self.linear = nn.Embedding(8, 8, sparse=True), nn.Linear(8, 8)

    def forward(self, x):
        return self.linear(x) + self.table(x.abs().long()[:, 0])


@odd(
    made(lambda: (torch.quantize_per_tensor(X, 0.1, 0, torch.qint8),)),
    others=[X],
    refused="the tracer met UnsupportedFakeTensorException: quantized nyi in meta tensors",
)
class QuantisedInput(nn.Module):
    def forward(self, x):
        return x.dequantize() * 2 if x.is_quantized else x


@odd(X, others=[rows(3)])
def dynamically_quantised():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.ao.quantization.quantize_dynamic(Plain(), {nn.Linear}, dtype=torch.qint8)


class Int8Linear(nn.Module):
    """Weight-only int8 written by hand: integer buffers, scales, a cast in every call."""

    def __init__(self):
        super().__init__()
        w = torch.randn(8, 8)
        self.register_buffer("scale", w.abs().amax(1, keepdim=True) / 127)
        self.register_buffer("weight", (w / self.scale).round().to(torch.int8))

    def forward(self, x):
        return F.linear(x, self.weight.to(x.dtype) * self.scale)


@odd(X, others=[rows(3), X.double().float()])
def int8_by_hand():
    return nn.Sequential(Int8Linear(), nn.ReLU(), Int8Linear())


@odd(
    X,
    others=[rows(3)],
    refused="it is compiled by torch.compile: give gatec the model first, and compile what comes back",
)
def compiled_model():
    return torch.compile(Plain(), backend="eager")


@odd(
    X,
    others=[rows(3)],
    refused={"1": "it is compiled by torch.compile: give gatec the model first, and compile what comes back"},
)
def compiled_child():
    return nn.Sequential(nn.Linear(8, 8), torch.compile(Plain(), backend="eager"))


@odd(
    X,
    others=[rows(3)],
    refused="the tracer met RuntimeError: Detected that you are using FX to symbolically trace a dynamo-optimized function. "
    "This is not supported at the moment.",
)
class CallsCompiledFunction(Block):
    def forward(self, x):
        return compiled(self.mlp(x), 2)


@torch.compile(backend="eager")
def compiled(x, by):
    return x.sin() * by


@odd(X, others=[rows(3)])
class DynamoDisabled(Block):
    @torch.compiler.disable
    def outside(self, x):
        return x * 2

    def forward(self, x):
        torch._dynamo.graph_break()
        return self.outside(self.mlp(x))


@odd(X, others=[rows(3)])
def data_parallel():
    return nn.DataParallel(Plain())


@odd(X, others=[rows(3)])
def averaged_model():
    return torch.optim.swa_utils.AveragedModel(Plain())


@odd(X, others=[rows(3), under(lambda: torch.autocast("cpu", torch.bfloat16), X)])
def under_autocast():
    return Plain()


@odd(X, others=[rows(3)])
def frozen():
    model = Plain().requires_grad_(False)
    model.down.bias.requires_grad_()
    return model


class Marked(torch.Tensor):
    """A subclass that only carries a name."""


@odd(
    made(lambda: (X.clone().as_subclass(Marked),)),
    others=[X, made(lambda: (rows(3).as_subclass(Marked),))],
    refused="it is given a tensor of class Marked",
)
class SubclassedInput(Block):
    def forward(self, x):
        return self.mlp(x) * (2 if isinstance(x, Marked) else 1)


@odd(
    made(lambda: (torch.nested.nested_tensor([rows(2), rows(3)], layout=torch.jagged),)),
    others=[X],
    refused="the tracer met AssertionError: self.shape_env must not be None",
)
class NestedInput(Block):
    def forward(self, x):
        return self.mlp(x).relu() if not x.is_nested else self.mlp(x).values()


@odd(rows(4)[:, 0].bool(), others=[torch.tensor(True), torch.arange(3), torch.tensor(2.5), torch.zeros(0)])
class AnyDtype(nn.Module):
    def forward(self, x):
        return x + 1, x * 2.5, x > 0, -x.float(), ~x if x.dtype is torch.bool else x


@odd(X.expand(2, 4, 8), others=[rows(2, 4).transpose(0, 1), X[:, ::2].repeat(1, 2)[None], rows(8).t()[None]])
class StridedInputs(Block):
    def forward(self, x):
        return self.mlp(x), x.contiguous(), x.reshape(-1)


@odd(X, others=[rows(3)])
class CopiesToDevice(Block):
    def forward(self, x):
        device = next(self.parameters()).device
        x = x.to(device, non_blocking=True).to(self.up.weight)
        y = self.mlp(x).cpu()
        return y.to("cpu", torch.float64), y.float(), y.type(torch.float32), y.to(x.device), y.long()
