"""Autograd in a forward: functions with their own backward, checkpoints, modes as blocks and decorators."""

import torch
from torch import nn
from torch.autograd import Function
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint, checkpoint_sequential

from odd import Block, X, after, odd, rows, under


class Halve(Function):
    """Its backward is not the derivative of its forward, so that losing it would be seen."""

    @staticmethod
    def forward(ctx, x, by=2):
        ctx.by = by
        return x / by

    @staticmethod
    def backward(ctx, grad):
        return grad * 100 * ctx.by, None


class Two(Function):
    @staticmethod
    def forward(x, y):
        return x * y, x + y

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(*inputs)
        ctx.mark_non_differentiable(output[1])

    @staticmethod
    def backward(ctx, a, b):
        x, y = ctx.saved_tensors
        return a * y * 7, a * x


@odd(X, others=[rows(3)])
class OwnBackward(Block):
    def forward(self, x):
        y, z = Two.apply(Halve.apply(self.mlp(x), 4), x)
        return y + z


class Dirty(Function):
    @staticmethod
    def forward(ctx, x):
        ctx.mark_dirty(x)
        return x.mul_(2)

    @staticmethod
    def backward(ctx, grad):
        return grad * 3


@odd(X, others=[rows(3)])
class InPlaceFunction(Block):
    def forward(self, x):
        y = self.mlp(x)
        Dirty.apply(y)
        return y


class StraightThrough(Block):
    def forward(self, x):
        soft = self.mlp(x).sigmoid()
        hard = (soft > 0.5).float()
        return hard + soft - soft.detach()


@odd(X, others=[rows(3)])
class Detaches(StraightThrough):
    def forward(self, x):
        return super().forward(x) * x.detach() + F.softmax(self.up(x).detach_(), -1).mean()


@odd(X, others=[rows(3), under(torch.no_grad, X)])
class NoGradBlock(Block):
    def forward(self, x):
        with torch.no_grad():
            scale = self.mlp(x).abs().mean()
        return self.mlp(x) * scale + x


@odd(X, others=[rows(3), under(torch.no_grad, X), under(torch.inference_mode, X)])
class NoGradDecorator(Block):
    @torch.no_grad()
    def forward(self, x):
        return self.mlp(x)


@odd(X, others=[rows(3), under(torch.no_grad, X)], falls=1)
class EnableGradBlock(Block):
    def forward(self, x):
        with torch.no_grad():
            frozen = self.mlp(x)
            with torch.enable_grad():
                free = self.mlp(x)
        return frozen * free


@odd(X, others=[after(lambda m: setattr(m, "frozen", False), X), under(torch.no_grad, X)])
class SetGradEnabled(Block):
    frozen = True

    def forward(self, x):
        with torch.set_grad_enabled(not self.frozen):
            y = self.mlp(x)
        return y + self.down(self.up(x))


@odd(X, others=[rows(3)])
class SetsGradAndLeavesIt(Block):
    def forward(self, x):
        before = torch.is_grad_enabled()
        torch.set_grad_enabled(False)
        y = self.mlp(x)
        torch.set_grad_enabled(before)
        return y + self.up(x).mean()


@odd(X, others=[rows(3)])
class InferenceBlock(Block):
    def forward(self, x):
        with torch.inference_mode():
            size = self.mlp(x).abs().max()
        return self.mlp(x) / 2 + size.clone().detach()


@odd(X, others=[under(torch.no_grad, X), X])
class AsksGrad(Block):
    def forward(self, x):
        y = self.mlp(x)
        if torch.is_grad_enabled():
            y = y * 2
        return y + 1 if y.requires_grad else y


def bf16():
    return torch.autocast("cpu", torch.bfloat16)


@odd(X, others=[rows(3), under(bf16, X)])
class AutocastOff(Block):
    """As every rotary embedding of transformers does."""

    def forward(self, x):
        with torch.autocast(device_type=x.device.type, enabled=False):
            y = self.up.weight.float()[:8] @ x.float().T
        return self.mlp(x) + y.T.mean()


@odd(X, others=[rows(3), under(bf16, X)])
class AutocastOn(Block):
    def forward(self, x):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            y = self.mlp(x)
            assert y.dtype == torch.bfloat16
        return y.float() * 2, self.mlp(x)


@odd(X, others=[rows(3), under(bf16, X)])
class AutocastDecorated(Block):
    @torch.autocast("cpu", dtype=torch.bfloat16)
    def forward(self, x):
        return self.mlp(x)


@odd(X, others=[under(bf16, X), X])
class AsksAutocast(Block):
    def forward(self, x):
        dtype = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else x.dtype
        return self.mlp(x).to(dtype)


class Plain(Block):
    def forward(self, x):
        return self.mlp(x)


class Checkpointed(nn.Module):
    reentrant = False

    def __init__(self):
        super().__init__()
        self.blocks = nn.ModuleList([Plain(), Plain()])

    def forward(self, x):
        for block in self.blocks:
            x = checkpoint(block, x, use_reentrant=self.reentrant) if self.training else block(x)
        return x


@odd(X, others=[rows(3), after(lambda m: m.eval(), X)], train=True)
class CheckpointNew(Checkpointed):
    pass


@odd(X, others=[rows(3), after(lambda m: m.eval(), X)], train=True)
class CheckpointReentrant(Checkpointed):
    reentrant = True


@odd(X, others=[rows(3)], refused="it checkpoints a function of its own (torch.utils.checkpoint)")
class CheckpointsItself(Block):
    def forward(self, x):
        return checkpoint(self.mlp, x, use_reentrant=False) + checkpoint(
            lambda z, k: z.sin() * k, x, 2, use_reentrant=False
        )


@odd(X, others=[rows(3)], refused="it checkpoints a function of its own (torch.utils.checkpoint)")
class CheckpointedSequential(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(Plain(), nn.GELU(), Plain())

    def forward(self, x):
        return checkpoint_sequential(self.net, 2, x, use_reentrant=False)


@odd(X, others=[rows(3)])
class RequiresGradInside(Block):
    def forward(self, x):
        y = x.detach().clone().requires_grad_(True)
        return self.mlp(y) + y.requires_grad_(False).detach()


@odd(X, others=[rows(3)], refused="it takes a derivative (torch.autograd.grad)")
class GradientInside(Block):
    """A gradient penalty, or a physics-informed loss: the forward takes a derivative."""

    def forward(self, x):
        with torch.enable_grad():
            x = x.detach().requires_grad_()
            y = self.mlp(x)
            (slope,) = torch.autograd.grad(y.sum(), x, create_graph=True)
        return y + slope


@odd(X, others=[rows(3)], refused="it works on gradients itself (.register_hook)")
class TensorHook(Block):
    def forward(self, x):
        y = self.mlp(x)
        if y.requires_grad:
            y.register_hook(lambda grad: grad * 2)
        return y


@odd(X, others=[rows(3)])
class RecordsFunction(Block):
    def forward(self, x):
        with torch.profiler.record_function("block"), torch.autograd.profiler.record_function("inner"):
            return self.mlp(x)


@odd(X, others=[rows(3)])
class DeviceContext(Block):
    def forward(self, x):
        with torch.device("cpu"):
            return self.mlp(x) + torch.ones(8)


@odd(X, others=[rows(3)], refused="it chooses a kernel for attention")
class SdpaKernel(Block):
    def forward(self, x):
        q = self.mlp(x)[None, None]
        with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
            return F.scaled_dot_product_attention(q, q, q)
