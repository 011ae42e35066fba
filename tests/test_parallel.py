"""Converted models over several processes: the same loss and the same parameters as in one."""

import copy
import functools
import importlib.util
from pathlib import Path
from unittest import mock

import pytest
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as checkpoint
from spawned import run
from torch import nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict, set_model_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.distributed.tensor.parallel import parallelize_module
from torch.nn import functional as F

import gatec
from gatec import dealing
from gatec.zoo import load

pytestmark = pytest.mark.filterwarnings("ignore")  # torch's own, about pickles and about merging collectives
STEPS, WIDTH = 3, 16
EXAMPLES = Path(__file__).resolve().parent.parent / "examples"


class MLP(nn.Module):
    def __init__(self, bias=True, gated=True):
        super().__init__()
        self.up = nn.Linear(WIDTH, 64, bias=bias)
        self.gate = nn.Linear(WIDTH, 64, bias=bias) if gated else None
        self.down = nn.Linear(64, WIDTH, bias=bias)

    def forward(self, x):
        if self.gate is None:
            return self.down(F.gelu(self.up(x)))
        return self.down(F.silu(self.gate(x)) * self.up(x))


class Packed(nn.Module):
    def __init__(self):
        super().__init__()
        self.both, self.down = nn.Linear(WIDTH, 128), nn.Linear(64, WIDTH)

    def forward(self, x):
        a, b = self.both(x).chunk(2, -1)
        return self.down(F.silu(a) * b)


def dense():
    torch.manual_seed(0)
    own = nn.Linear(WIDTH, WIDTH), MLP(), nn.LayerNorm(WIDTH), MLP(False), nn.LayerNorm(WIDTH), MLP(gated=False)
    return nn.Sequential(*own).double()


def converted(**options):
    return gatec.convert(dense(), "moe", experts=4, top_k=2, inputs=torch.randn(3, WIDTH).double(), **options)


def data(rows=8, same=False):
    torch.manual_seed(1)
    x, y = torch.randn(2, rows, WIDTH).double()
    return (x[:1].expand_as(x) if same else x), y


def mine(batch):
    """This process' part of a batch."""
    return [t.chunk(dist.get_world_size())[dist.get_rank()] for t in batch]


def trained(model, x, y):
    """The losses of a few steps of SGD, as means over the processes."""
    optimizer, losses = torch.optim.SGD(model.parameters(), lr=0.3), []
    for _ in range(STEPS):
        optimizer.zero_grad()
        loss = F.mse_loss(model(x), y)
        loss.backward()
        optimizer.step()
        mean = loss.detach().clone()
        dist.all_reduce(mean)
        losses.append(mean / dist.get_world_size())
    return torch.stack(losses)


def whole(model):
    return get_model_state_dict(model, options=StateDictOptions(full_state_dict=True))


def compare(model, batch, all_of_it, build=converted, **options):
    """Trained here on this process' batch and in one process on everything: the same losses and parameters."""
    alone = build(**options)
    losses = trained(alone, *all_of_it)
    torch.testing.assert_close(trained(model, *batch), losses, rtol=1e-12, atol=0)
    assert losses[-1] < losses[0]
    torch.testing.assert_close(whole(model), dict(alone.state_dict()), rtol=1e-12, atol=1e-14)


def experts_in(model):
    return {p for p in model.parameters() if isinstance(p, DTensor)}


def fsdp(rank):
    model = converted()
    for i in (1, 3, 5):
        fully_shard(model[i])
    compare(fully_shard(model), mine(data()), data())


def ddp_with_idle_experts(rank):
    """All tokens are equal, so that two of four experts see none; every parameter still gets a gradient."""
    batch = data(same=True)
    model = nn.parallel.DistributedDataParallel(converted())
    F.mse_loss(model(batch[0]), batch[1]).backward()
    rows = model.module[1].up.weight.grad.unflatten(0, (4, -1)).flatten(1).abs().sum(1)
    assert sorted((rows == 0).tolist()) == [False, False, True, True]
    assert all(p.grad is not None for p in model.parameters())
    plain = nn.parallel.DistributedDataParallel(converted())
    alone = converted()
    torch.testing.assert_close(trained(plain, *mine(batch)), trained(alone, *batch), rtol=1e-12, atol=0)


def experts_apart(rank):
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    model = gatec.expert_parallel(converted(), mesh)
    experts = experts_in(model)
    assert {len(p.to_local()) for p in experts if p.shape[0] == 64} == {64 // mesh.size()}
    compare(fully_shard(model, mesh=mesh, ignored_params=experts), mine(data()), data())


def experts_apart_with_unequal_shares(rank):
    """One process has a token more than the other, and all tokens of each go to the same experts."""
    mesh = init_device_mesh("cpu", (2,))
    model, alone = gatec.expert_parallel(converted(), mesh), converted()
    x, y = data()
    x = x[:1] + x * 1e-9
    share = slice(0, 5) if rank == 0 else slice(5, 8)
    torch.testing.assert_close(model(x[share]), alone(x)[share], rtol=1e-12, atol=0)
    (2 * F.mse_loss(model(x[share]), y[share], reduction="sum")).backward()  # the mean over two processes is the sum
    F.mse_loss(alone(x), y, reduction="sum").backward()
    for p, q in zip(model.parameters(), alone.parameters(), strict=True):
        if isinstance(p, DTensor):
            torch.testing.assert_close(p.grad.full_tensor(), q.grad, rtol=1e-10, atol=1e-14)


def experts_of_tokens_that_differ_in_number(rank):
    """Routers after which each token has a number of experts of its own."""
    mesh = init_device_mesh("cpu", (2,))
    for router in ("dynamic", "dselect"):
        apart, same = converted(router=router), converted(router=router)
        gatec.expert_parallel(apart, mesh)
        fully_shard(apart, mesh=mesh, ignored_params=experts_in(apart))
        compare(apart, mine(data()), data(), router=router)
        compare(parallelize_module(same, mesh, gatec.tp_plan(same)), data(), data(), router=router)


def packed(**options):
    """Two projections in one layer, and a mixture beside it whose projections are apart."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(WIDTH, WIDTH), Packed(), nn.LayerNorm(WIDTH), MLP(), nn.LayerNorm(WIDTH)).double()
    x = torch.randn(3, WIDTH).double()
    return gatec.convert(model, "moe", **{"experts": 8, "top_k": 2, "inputs": x, **options})


def experts_of_packed_and_shared_layers(rank):
    """The two halves of a layer are cut alike; shared blocks count as experts that no row is sent to."""
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    for options in ({}, {"shared": 1}, {"shared": 3, "router": "dynamic"}):
        build = functools.partial(packed, **options)
        apart, same = build(), build()
        gatec.expert_parallel(apart, mesh)
        rows = apart[1].both.weight.to_local()
        assert rows.shape == (128 // mesh.size(), WIDTH)
        fully_shard(apart, mesh=mesh, ignored_params=experts_in(apart))
        compare(apart, mine(data()), data(), build)
        compare(parallelize_module(same, mesh, gatec.tp_plan(same)), data(), data(), build)


def experts_of_all_tokens(rank):
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    model = converted()
    compare(parallelize_module(model, mesh, gatec.tp_plan(model)), data(), data())


def two_meshes(rank, tokens):
    mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("data", "experts"))
    world = mesh["data", "experts"]._flatten("world")
    model = converted()
    if tokens == "same":
        parallelize_module(model, mesh["experts"], gatec.tp_plan(model))
        part = mesh.get_local_rank("data")
        compare(fully_shard(model, mesh=mesh["data"]), [t.chunk(2)[part] for t in data()], data())
        return
    gatec.expert_parallel(model, mesh["experts"])
    for i in (1, 3, 5):
        fully_shard(model[i].router, mesh=world)
        fully_shard(model[i], mesh=mesh["data"])
    compare(fully_shard(model, mesh=world), mine(data()), data())


def conversion_is_shared(rank):
    """Each process makes some of the edits; models and reports are as one process makes them."""
    x = torch.randn(3, WIDTH).double()
    for passes in ("moe(experts=4,top_k=2)", "prune"):
        seen = []
        together = gatec.convert(dense(), passes, inputs=x, group=dist.group.WORLD, progress=seen.append)
        alone = gatec.convert(dense(), passes, inputs=x)
        assert len(seen) == len(range(3)[rank :: dist.get_world_size()])
        torch.testing.assert_close(together.state_dict(), alone.state_dict(), rtol=0, atol=0)
        assert str(gatec.report(together)) == str(gatec.report(alone))
        assert torch.equal(together(x), alone(x))


def conversion_fails_everywhere(rank):
    """What fails in one process fails in all, and no model stays changed; models that differ are told so."""
    model, real = dense(), dealing.put
    before = {n: v.clone() for n, v in model.state_dict().items()}

    def failing(*args, dry=False, **how):
        if rank == 1 and not dry:
            raise gatec.GatecError("weights that can be clustered")
        return real(*args, dry=dry, **how)

    with mock.patch.object(dealing, "put", failing), pytest.raises(gatec.GatecError) as error:
        gatec.convert_(model, "moe(experts=4,top_k=2)", inputs=data()[0], group=dist.group.WORLD)
    words = "gatec: weights that can be clustered"
    told = f"gatec: a conversion that succeeds in every process\n  found {words}\n  where rank 1"
    assert str(error.value) == (words if rank == 1 else told)
    torch.testing.assert_close(dict(model.state_dict()), before, rtol=0, atol=0)
    other = dense() if rank else nn.Sequential(*dense()[:4])
    with pytest.raises(gatec.GatecError) as error:
        gatec.convert(other, "moe(experts=4,top_k=2)", inputs=data()[0], group=dist.group.WORLD)
    assert str(error.value) == (
        "gatec: the same model in every process\n"
        "  found places that differ between them\n"
        "  where Sequential\n"
        "  try   build and load it in the same way everywhere"
    )


def saved(rank, folder):
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    model = gatec.expert_parallel(converted(), mesh)
    trained(fully_shard(model, mesh=mesh, ignored_params=experts_in(model)), *mine(data()))
    checkpoint.save({"model": model.state_dict()}, checkpoint_id=folder)
    return whole(model)


def resumed(rank, folder, state):
    """The checkpoint of other processes, in this many, in one, and fully sharded."""
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    apart = gatec.expert_parallel(converted(), mesh)
    for model in (apart, fully_shard(converted()), converted()):
        own = {"model": model.state_dict()}
        checkpoint.load(own, checkpoint_id=folder)
        model.load_state_dict(own["model"])
        torch.testing.assert_close(whole(model), state, rtol=0, atol=0)


def from_meta(rank, folder, state):
    """No process ever holds the whole model: structure on meta, shards, then tensors into the shards."""
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    with torch.device("meta"):
        base = dense()
    model = gatec.load(folder, base, inputs=data()[0], tensors=False)
    assert all(p.is_meta for p in model.parameters())
    gatec.expert_parallel(model, mesh)
    fully_shard(model, mesh=mesh, ignored_params=experts_in(model)).to_empty(device="cpu")
    own = model.state_dict()
    checkpoint.load(own, storage_reader=checkpoint.HuggingFaceStorageReader(folder))
    model.load_state_dict(own)
    torch.testing.assert_close(whole(model), state, rtol=0, atol=0)
    compare(model, mine(data()), data())


def llama(rank):
    """A transformers model: blocks sharded, one step's loss and gradients as in one process."""
    model = gatec.convert(load("transformers:llama"), "moe", experts=4, top_k=2).train()
    alone = copy.deepcopy(model)
    for layer in model.model.layers:
        fully_shard(layer)
    fully_shard(model)
    ids = torch.arange(4 * 9).reshape(4, 9) % 64
    own = ids.chunk(dist.get_world_size())[rank]
    losses = []
    for each, batch in ((model, own), (alone, ids)):
        optimizer = torch.optim.SGD(each.parameters(), lr=0.1)
        for _ in range(STEPS):
            optimizer.zero_grad()
            loss = each(input_ids=batch, labels=batch).loss
            loss.backward()
            optimizer.step()
            losses.append(loss.detach())
    mean = torch.stack(losses[:STEPS])
    dist.all_reduce(mean)
    torch.testing.assert_close(mean / dist.get_world_size(), torch.stack(losses[STEPS:]), rtol=2e-7, atol=0)
    torch.testing.assert_close(whole(model), dict(alone.state_dict()), rtol=1e-5, atol=2e-7)


def in_the_words_of_transformers(rank):
    """transformers' own tensor parallelism: heads and experts over the processes, one step as in one process."""
    from transformers.distributed import DistributedConfig
    from transformers.distributed.tensor_parallel import apply_tensor_parallelism

    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    model = gatec.convert(load("transformers:llama"), "moe", experts=4, top_k=2).train()
    alone, ids = copy.deepcopy(model), torch.arange(4 * 9).reshape(4, 9) % 64
    plan = gatec.transformers_plan(model)
    assert plan["model.layers.*.mlp"] == "gatec_experts" and plan["model.layers.*.self_attn.q_proj"] == "colwise"
    assert plan == model.tp_plan and not any(".mlp." in rule for rule in plan)
    concrete = model._resolve_parallel_plans(DistributedConfig(tp_size=mesh.size()))[0]
    apply_tensor_parallelism(model, mesh, concrete)
    layer = model.model.layers[0]
    assert len(layer.mlp.up_proj.weight.to_local()) == len(layer.mlp.up_proj.weight) // mesh.size()
    assert len(layer.self_attn.q_proj.weight.to_local()) == len(layer.self_attn.q_proj.weight) // mesh.size()
    losses = [m(input_ids=ids, labels=ids).loss for m in (model, alone)]
    torch.testing.assert_close(losses[0], losses[1], rtol=2e-7, atol=0)
    for loss in losses:
        loss.backward()
    own, other = (m.model.layers[1].mlp.up_proj.weight.grad for m in (model, alone))
    torch.testing.assert_close(own.full_tensor(), other, rtol=1e-5, atol=1e-8)


def packed_trained(rank):
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    model = gatec.expert_parallel(packed(shared=1), mesh)
    trained(fully_shard(model, mesh=mesh, ignored_params=experts_in(model)), *mine(data()))
    return whole(model)


def packed_resumed(rank, state):
    """The whole state in four processes and in one."""
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    for model in (gatec.expert_parallel(packed(shared=1), mesh), packed(shared=1)):
        set_model_state_dict(model, dict(state), options=StateDictOptions(full_state_dict=True))
        torch.testing.assert_close(whole(model), state, rtol=0, atol=0)


def example(rank, folder):
    return example_of("train_moe_distributed").train(4, folder)


def example_of(name):
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def refused(rank):
    """What each misuse is told."""
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    sharded = gatec.expert_parallel(converted(), mesh)
    calls = {
        "convert": lambda: gatec.convert(sharded, "glu", inputs=data()[0]),
        "convert_": lambda: gatec.convert_(fully_shard(dense()), "moe", inputs=data()[0]),
        "twice": lambda: gatec.expert_parallel(sharded, mesh),
        "dense": lambda: gatec.expert_parallel(dense(), mesh),
        "odd": lambda: gatec.expert_parallel(gatec.convert(dense(), "moe(experts=1,top_k=1)", inputs=data()[0]), mesh),
    }
    found = {}
    for name, call in calls.items():
        with pytest.raises(gatec.GatecError) as error:
            call()
        found[name] = str(error.value)
    return found


def everything(rank, names):
    return {name: globals()[name](rank) for name in names}


def test_two_processes():
    checks = ["experts_apart", "experts_of_all_tokens", "experts_of_packed_and_shared_layers", "fsdp", "refused"]
    words = run(2, everything, checks)[0]["refused"]
    assert words["convert"] == (
        "gatec: a model that is not sharded yet\n"
        "  found a DTensor in 1.up.weight\n"
        "  where Sequential\n"
        "  try   convert before sharding: gatec.convert, then fully_shard or parallelize_module"
    )
    assert words["convert_"].splitlines()[0] == "gatec: a model that is not sharded yet"
    assert words["twice"] == (
        "gatec: a mixture whose experts lie together\n  found experts that are sharded already\n  where 1"
    )
    assert words["dense"] == (
        "gatec: a model with a mixture of experts\n"
        "  found none in Sequential\n"
        '  try   gatec.convert(model, "moe") before it is sharded'
    )
    assert words["odd"] == (
        "gatec: experts that 2 processes share evenly\n"
        "  found 1 experts\n"
        "  where 1\n"
        "  try   a mesh whose size divides the number of experts"
    )


@pytest.mark.sweep
def test_two_processes_more():
    checks = [
        "ddp_with_idle_experts",
        "experts_apart_with_unequal_shares",
        "conversion_is_shared",
        "llama",
        "in_the_words_of_transformers",
    ]
    run(2, everything, [*checks, "conversion_fails_everywhere", "experts_of_tokens_that_differ_in_number"])


@pytest.mark.sweep
def test_four_processes():
    checks = ["fsdp", "experts_apart", "experts_of_all_tokens", "experts_of_packed_and_shared_layers"]
    run(4, everything, [*checks, "conversion_is_shared"])


@pytest.mark.sweep
@pytest.mark.parametrize("tokens", ["apart", "same"])
def test_four_processes_in_two_dimensions(tokens):
    run(4, two_meshes, tokens)


@pytest.mark.sweep
def test_a_checkpoint_of_two_processes_in_four_and_in_one(tmp_path):
    state = run(2, saved, str(tmp_path))[0]
    run(4, resumed, str(tmp_path), state)
    alone = converted()
    own = {"model": alone.state_dict()}
    checkpoint.load(own, checkpoint_id=tmp_path, no_dist=True)
    torch.testing.assert_close(dict(own["model"]), state, rtol=0, atol=0)


@pytest.mark.sweep
def test_packed_layers_of_two_processes_in_four():
    run(4, packed_resumed, run(2, packed_trained)[0])


@pytest.mark.sweep
def test_shards_are_filled_from_what_gatec_saved(tmp_path):
    model = converted()
    gatec.save(model, tmp_path)
    run(2, from_meta, str(tmp_path), dict(model.state_dict()))


@pytest.mark.sweep
def test_the_example_trains_and_leaves_a_checkpoint(tmp_path):
    one, two = run(2, example, str(tmp_path))
    assert one == two and one[-1] < one[0]
    model = example_of("train_moe_distributed").Bytes()
    tokens = torch.zeros(2, 4, dtype=torch.long)
    model = gatec.convert(model, "moe", experts=8, top_k=2, inputs=tokens)
    before = model.blocks[0].up.weight.detach().clone()
    checkpoint.load({"model": model.state_dict()}, checkpoint_id=tmp_path, no_dist=True)
    assert not torch.equal(model.blocks[0].up.weight, before)


def test_a_meta_model_takes_what_gatec_saved(tmp_path):
    model, x = converted(), data()[0]
    gatec.save(model, tmp_path)
    with torch.device("meta"):
        base = dense()
    again = gatec.load(tmp_path, base, inputs=x)
    torch.testing.assert_close(again(x), model(x), rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(again.state_dict(), model.state_dict(), rtol=0, atol=0)
    assert all(p.is_meta for p in base.parameters())
    assert [p.requires_grad for p in again.parameters()] == [p.requires_grad for p in model.parameters()]


def test_a_meta_transformers_model_gets_its_buffers_too(tmp_path):
    dense = load("transformers:llama")
    model = gatec.convert(dense, "moe", experts=4, top_k=2)
    gatec.save(model, tmp_path)
    with torch.device("meta"):
        base = type(dense)(dense.config).eval()
    assert base.model.rotary_emb.inv_freq.is_meta
    again, ids = gatec.load(tmp_path, base), torch.arange(12).reshape(2, 6)
    assert torch.equal(again(ids).logits, model(ids).logits)


class Table(nn.Module):
    def __init__(self):
        super().__init__()
        self.up, self.down = nn.Linear(WIDTH, 64), nn.Linear(64, WIDTH)
        self.register_buffer("table", torch.ones(WIDTH), persistent=False)

    def forward(self, x):
        return self.down(F.relu(self.up(x * self.table)))


def test_a_buffer_that_nobody_can_compute_is_named(tmp_path):
    x = torch.randn(3, WIDTH)
    gatec.save(gatec.convert(Table(), "moe", experts=4, top_k=2, inputs=x), tmp_path)
    with torch.device("meta"):
        base = Table()
    with pytest.raises(gatec.GatecError) as error:
        gatec.load(tmp_path, base, inputs=x)
    assert str(error.value) == (
        "gatec: a model whose buffers are saved or can be computed anew\n"
        "  found table on the meta device\n"
        "  where Table\n"
        "  try   a method reset_buffers() of its module, or buffers on a real device"
    )


def test_only_models_with_a_plan_of_transformers_get_one():
    with pytest.raises(gatec.GatecError) as error:
        gatec.transformers_plan(converted())
    assert str(error.value) == (
        "gatec: a model of transformers that has a tp_plan\n"
        "  found none in Sequential\n"
        "  try   parallelize_module(model, mesh, gatec.tp_plan(model)) takes any model"
    )


def test_a_meta_model_is_not_converted():
    with torch.device("meta"):
        model = dense()
    with pytest.raises(gatec.GatecError) as error:
        gatec.convert(model, "moe", experts=4, top_k=2, inputs=data()[0])
    assert str(error.value) == (
        "gatec: parameters with values\n"
        "  found 0.weight on the meta device\n"
        "  where Sequential\n"
        "  try   load its weights first; gatec.load replays what was saved on a meta model"
    )
