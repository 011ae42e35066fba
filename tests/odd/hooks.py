"""What is registered on modules: hooks, parametrizations, norms of weights, pruning masks, lazy parameters."""

import torch
from torch import nn
from torch.nn.utils import parametrizations, parametrize, prune

from odd import Block, X, after, odd, rows


class Plain(Block):
    def forward(self, x):
        return self.mlp(x)


class Two(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = Plain(), nn.Linear(8, 8)

    def forward(self, x, scale=1):
        return self.b(self.a(x)) * scale


def everywhere(register):
    """The hook on the model, on a child, on a leaf."""
    model = Two()
    for module in (model, model.a, model.b):
        register(module)
    return model


@odd(X, others=[rows(3)])
def forward_hook_that_looks():
    model = Two()
    model.seen = []
    for m in (model, model.a, model.b):
        m.register_forward_hook(lambda m, args, out: model.seen.append((type(m).__name__, tuple(out.shape))))
    return model


@odd(X, others=[rows(3)])
def forward_hook_that_changes():
    return everywhere(lambda m: m.register_forward_hook(lambda m, args, out: out * 2))


@odd(X, others=[rows(3)])
def pre_hook_that_changes():
    return everywhere(lambda m: m.register_forward_pre_hook(lambda m, args: (args[0] + 1, *args[1:])))


@odd(X, others=[rows(3)])
def pre_hook_with_keywords():
    def hook(module, args, kwargs):
        return args, {**kwargs, "scale": 3}

    model = Two()
    model.register_forward_pre_hook(hook, with_kwargs=True)
    return model


@odd(X, others=[rows(3)])
def pre_hook_that_changes_the_form():
    """The call that gatec sees is the one behind the hook: another rank, a keyword for a position."""
    model = Two()
    model.a.register_forward_pre_hook(lambda m, args: args[0][None])
    model.b.register_forward_pre_hook(lambda m, args, kw: ((), {"input": args[0][0]}), with_kwargs=True)
    return model


@odd(X, others=[rows(3)])
def hooks_that_are_always_called():
    def hook(module, args, out):
        module.calls = getattr(module, "calls", 0) + 1

    return everywhere(lambda m: m.register_forward_hook(hook, always_call=True, prepend=True))


@odd(X, others=[rows(3)])
def backward_hooks():
    def hook(module, before, after):
        module.gradient = after[0].sum().item()
        return tuple(None if g is None else g * 2 for g in before)

    return everywhere(lambda m: m.register_full_backward_hook(hook))


@odd(X, others=[rows(3)])
def backward_pre_hooks():
    return everywhere(lambda m: m.register_full_backward_pre_hook(lambda m, grads: tuple(g * 3 for g in grads)))


def late(model):
    for m in (model, model.a, model.b):
        m.register_forward_hook(lambda m, args, out: out + 1)
        m.register_forward_pre_hook(lambda m, args: (args[0] * 2,))


@odd(X, others=[rows(3), after(late, X), rows(3)])
def hooks_registered_later():
    return Two()


def hooked(model):
    model.handle = model.a.register_forward_hook(lambda m, args, out: out * 5)
    return model


@odd(X, others=[after(lambda m: m.handle.remove(), X)])
def hook_removed_later():
    return hooked(Two())


@odd(X, others=[rows(3)])
def hook_that_collects_features():
    """What feature extractors do: a dictionary of the outputs of children."""
    model = Two()
    model.features = {}
    model.a.up.register_forward_hook(lambda m, args, out: model.features.update(up=out.detach()))
    return model


@odd(X, others=[rows(3)])
def gradient_hooks_of_parameters():
    model = Two()
    model.b.weight.register_hook(lambda grad: grad * 10)
    model.a.up.bias.register_post_accumulate_grad_hook(lambda p: p.grad.mul_(2))
    return model


class Skips(nn.Module):
    """Early exit by exception: a hook stops the forward."""

    class Stop(Exception):
        pass

    def __init__(self):
        super().__init__()
        self.body = Two()
        self.body.a.register_forward_hook(self.stop)

    def stop(self, module, args, out):
        raise self.Stop(out)

    def forward(self, x):
        try:
            return self.body(x)
        except self.Stop as stop:
            return stop.args[0] * 2


class Symmetric(nn.Module):
    def forward(self, w):
        return w.triu() + w.triu(1).mT

    def right_inverse(self, w):
        return w.triu()


class Weighted(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear, self.out = nn.Linear(8, 8), nn.Linear(8, 8)

    def forward(self, x):
        return self.out(self.linear(x).relu()) + x @ self.linear.weight


@odd(X, others=[rows(3), after(lambda m: parametrize.remove_parametrizations(m.linear, "weight"), X)])
def custom_parametrization():
    model = Weighted()
    parametrize.register_parametrization(model.linear, "weight", Symmetric())
    return model


@odd(X, others=[after(lambda m: parametrize.register_parametrization(m.out, "weight", Symmetric()), X)])
def parametrized_later():
    return Weighted()


@odd(X, others=[rows(3)])
def orthogonal():
    model = Weighted()
    parametrizations.orthogonal(model.linear)
    return model


@odd(X, others=[rows(3)])
def weight_norm():
    model = Weighted()
    parametrizations.weight_norm(model.linear)
    return model


@odd(X, others=[rows(3), X, after(lambda m: m.eval(), X)], train=True)
def spectral_norm():
    """In train mode every read of the weight moves two buffers."""
    model = Weighted()
    parametrizations.spectral_norm(model.linear)
    parametrizations.spectral_norm(model.out)
    return model


@odd(X, others=[rows(3)])
def old_weight_norm():
    model = Weighted()
    torch.nn.utils.weight_norm(model.linear)
    return model


@odd(X, others=[rows(3), X, after(lambda m: m.eval(), X)], train=True)
def old_spectral_norm():
    model = Weighted()
    torch.nn.utils.spectral_norm(model.linear)
    return model


@odd(X, others=[rows(3), after(lambda m: prune.remove(m.linear, "weight"), X)])
def pruned():
    model = Weighted()
    prune.l1_unstructured(model.linear, "weight", amount=0.3)
    prune.random_structured(model.out, "weight", amount=0.5, dim=0)
    return model


@odd(X, others=[after(lambda m: prune.l1_unstructured(m.linear, "weight", amount=0.5), X)])
def pruned_later():
    return Weighted()


class Lazy(nn.Module):
    def __init__(self):
        super().__init__()
        self.up, self.down = nn.LazyLinear(16), nn.LazyLinear(8)

    def forward(self, x):
        return self.down(self.up(x).relu())


@odd(X, others=[rows(3)])
def lazy_initialised():
    model = Lazy()
    model(X)
    return model
