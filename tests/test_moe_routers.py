"""Every kind of router under the same laws, inside a converted model and alone."""

import copy
import pickle

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import gatec
from gatec.moe import ROUTERS

KINDS = sorted(ROUTERS)
SOFT = {"dselect", "dense_to_sparse"}  # choose by weights that are not all one


class MLP(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.gate, self.up, self.down = (nn.Linear(a, b) for a, b in ((16, 48), (16, 48), (48, 16)))

    def forward(self, x):
        return self.down(F.silu(self.gate(x)) * self.up(x))


def converted(kind: str, experts: int = 4, top_k: int = 2, **more):
    dense, x = MLP().double().eval(), torch.randn(3, 7, 16, dtype=torch.float64)
    return dense, gatec.convert(dense, "moe", router=kind, experts=experts, top_k=top_k, inputs=x, **more), x


def routed(kind: str, whole: bool = True, experts: int = 6, top_k: int = 2):
    made = ROUTERS[kind](16, experts, top_k, whole=whole, tasks=2).eval()
    for parameter in made.parameters():
        nn.init.normal_(parameter)
    x = torch.randn(64, 16)
    return made, x, made.dense(made(x))


@pytest.mark.parametrize("kind", KINDS)
def test_all_experts_on_are_the_dense_layer(kind):
    dense, moe, x = converted(kind, top_k=4)
    assert (moe(x) - dense(x)).norm() <= 1e-12 * dense(x).norm()


@pytest.mark.parametrize("experts", [4, 6])
@pytest.mark.parametrize("kind", KINDS)
def test_weights_are_finite_and_sum_to_one(kind, experts):
    made, _, weight = routed(kind, whole=False, experts=experts)
    assert weight.isfinite().all() and (weight >= 0).all()
    some = weight[weight.sum(-1) > 0]  # experts that choose may leave a token out
    torch.testing.assert_close(some.sum(-1), torch.ones(len(some)))
    assert len(some) == len(weight) or kind == "expert_choice"
    assert not made.fixed or ((weight != 0).sum(-1) == 2).all()


@pytest.mark.parametrize("kind", sorted(set(KINDS) - SOFT))
def test_a_chosen_part_of_a_layer_counts_whole(kind):
    _, _, weight = routed(kind)
    assert set(weight.unique().tolist()) <= {0.0, 1.0}


@pytest.mark.parametrize("kind", sorted(set(KINDS) - {"hash"}))
@pytest.mark.parametrize("hidden", [0, 8])
def test_the_scores_learn(kind, hidden):
    _, moe, x = converted(kind, hidden=hidden)
    moe.train()(x).square().sum().backward()
    slopes = [p.grad for p in moe.router.parameters() if p.grad is not None]
    assert any(g.abs().sum() > 0 for g in slopes) and all(g.isfinite().all() for g in slopes)


@pytest.mark.parametrize("kind", KINDS)
def test_copies_files_and_saved_folders_route_alike(kind, tmp_path):
    dense, moe, x = converted(kind)
    moe.train()(x)  # leaves losses behind, which no copy can take along
    moe.eval()
    folder = gatec.save(moe, tmp_path / "moe")
    for again in (copy.deepcopy(moe), pickle.loads(pickle.dumps(moe)), gatec.load(folder, dense, inputs=x)):
        assert torch.equal(again.eval()(x), moe(x))


@pytest.mark.parametrize("kind", [k if k == "dynamic" else pytest.param(k, marks=pytest.mark.sweep) for k in KINDS])
def test_fused_and_exported_as_it_is(kind, tmp_path):
    _, moe, x = converted(kind)
    moe, x = moe.float(), x.float()
    fused = gatec.fuse(moe, inputs=x, everywhere=True)
    torch.testing.assert_close(fused(x[:2]), moe(x[:2]))
    gatec.export(moe, tmp_path / "moe.onnx", inputs=x)  # compares with onnxruntime at other sizes


def test_noise_is_for_training():
    made, x, weight = routed("noisy")
    assert torch.equal(made.dense(made(x)), weight)
    assert not torch.equal(made.train().dense(made(x)), weight)


def test_experts_that_choose_are_even():
    _, _, weight = routed("expert_choice", experts=4)
    assert ((weight != 0).sum(0) == 32).all()


def test_a_bias_evens_out_a_skewed_load():
    made, x, before = routed("sigmoid")
    made.rate = 0.02
    made.train()
    for _ in range(200):
        weight = made.dense(made(x))
    most = [(w != 0).sum(0).max() for w in (before, weight)]
    assert most[1] < most[0] and most[1] <= 32  # 64 tokens, 2 of 6 experts: even is 21


@pytest.mark.parametrize("experts", [4, 5, 6, 7])
def test_saturated_selectors_choose_k_and_never_nothing(experts):
    made, x, _ = routed("dselect", whole=False, experts=experts)
    with torch.no_grad():
        made.score.weight.mul_(1e4)
    made.zero_grad()
    weight = made(x)
    assert ((weight != 0).sum(-1) <= 2).all()
    torch.testing.assert_close(weight.sum(-1), torch.ones(64))


def test_selectors_have_slopes_until_they_are_saturated():
    made = ROUTERS["dselect"](16, 6, 1)
    code = torch.tensor([[0.3, 0.1, 0.2, -0.1]], requires_grad=True)
    (slope,) = torch.autograd.grad(made.route(code)[0, 0], code)
    assert slope[0, 1:].abs().min() > 0
    code = torch.tensor([[0.3, 2.0, -2.0, 2.0]], requires_grad=True)
    (slope,) = torch.autograd.grad(made.route(code).square().sum(), code)
    assert slope.abs().max() == 0


def test_annealing_goes_from_dense_to_sparse():
    dense, moe, x = converted("dense_to_sparse", experts=8)
    assert (moe(x) - dense(x)).norm() <= 1e-12 * dense(x).norm()
    nn.init.normal_(moe.router.score.weight)
    counts = []
    for progress in (0, 0.5, 1):
        moe.router.anneal(progress)
        counts.append(int((moe.router(x.flatten(0, 1)) != 0).sum()))
    assert counts[0] > counts[1] > counts[2]


def test_a_higher_tau_runs_more_experts():
    made, x, _ = routed("dynamic")
    counts = []
    for tau in (0.0, 0.5, 1.0):
        made.tau.fill_(tau)
        counts.append(int((made(x) != 0).sum()))
    assert counts[0] == 64 and counts[0] < counts[1] < counts[2] == 64 * 6


def test_tasks_have_routers_of_their_own():
    _, moe, x = converted("multi_gate", tasks=3, hidden=8)
    first = moe(x)
    with gatec.task(moe, 2):
        other = moe(x)
    assert not torch.equal(first, other) and torch.equal(moe(x), first)
    with pytest.raises(gatec.GatecError, match="a task from 0 to 2"), gatec.task(moe, 3):
        pass
    with pytest.raises(gatec.GatecError, match="multi_gate"), gatec.task(MLP(), 0):
        pass


def test_losses_are_of_the_last_forward_in_training():
    _, moe, x = converted("softmax")
    assert gatec.losses(moe) == {}
    moe.train()(x)
    named = gatec.losses(moe)
    assert set(named) == {"balance", "importance", "z"} and named["balance"] >= 0.99
    total = gatec.losses(moe, balance=0.5, z=2.0)
    torch.testing.assert_close(total, 0.5 * named["balance"] + 2 * named["z"])
    total.backward()
    assert moe.router.score.weight.grad.abs().sum() > 0
    with pytest.raises(gatec.GatecError, match="entropy"):
        gatec.losses(moe, entropy=1.0)


def test_balance_loss_evens_out_a_skewed_load():
    made, x, before = routed("softmax")
    made.train()
    sgd = torch.optim.Adam(made.parameters(), 0.05)
    for _ in range(60):
        made(x)
        sgd.zero_grad()
        gatec.losses(made, balance=1.0).backward()
        sgd.step()
    after = made.dense(made(x))
    assert (after != 0).sum(0).max() < (before != 0).sum(0).max()


def test_health_names_experts_that_nobody_chooses():
    _, moe, x = converted("softmax")
    assert "no token" in str(gatec.health(moe))
    with torch.no_grad():
        moe.router.score.weight.copy_(torch.eye(4, 16) * 0)
        moe.router.score.weight[0] = 1
        moe.router.score.weight[1] = -1
        x = x.abs()
    with gatec.watching(moe):
        moe(x)
        moe(x)
    (usage,) = gatec.health(moe).usage
    assert usage.pairs == 2 * 21 * 2 and 1 in usage.dead and "nobody chose" in str(gatec.health(moe))
    moe(x)
    assert gatec.health(moe).usage[0].pairs == usage.pairs  # nobody watches any more
    with pytest.raises(gatec.GatecError, match="a model with routers"):
        gatec.health(MLP())


def test_a_router_of_ones_own():
    @gatec.router("first_two")
    class FirstTwo(gatec.Router):
        def route(self, logits):
            chosen = torch.arange(2).expand(len(logits), 2)
            return chosen, self.counted(logits.gather(1, chosen))

    try:
        dense, moe, x = converted("first_two")
        assert type(moe.router) is FirstTwo
        hidden = F.silu(dense.gate(x)) * dense.up(x)
        mine = moe.router.order[:24]
        expected = F.linear(hidden[..., mine], dense.down.weight[:, mine], dense.down.bias)
        torch.testing.assert_close(moe(x), expected)
    finally:
        del ROUTERS["first_two"]


def test_unknown_kinds_are_named():
    with pytest.raises(gatec.GatecError, match="dense_to_sparse"):
        converted("auction")
