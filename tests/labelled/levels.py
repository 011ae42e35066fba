"""One snippet as each of torch's front ends sees it. Many are captured at once and taken apart: a capture is dear."""

import operator
from functools import cache

import decisions
import glus
import lookalikes
import routers
import scales
import states
import torch
import weights
from snippets import SNIPPETS
from torch import fx, nn
from torch.fx.experimental.proxy_tensor import make_fx

from gatec.match import Canon
from gatec.program import Program
from gatec.recognise import finds

FAMILIES = (glus, scales, routers, states, decisions, weights, lookalikes)
BY_NAME = {snippet.name: snippet for snippet in SNIPPETS}
BUNDLE = 20


class Together(nn.Module):
    """Several modules, each with inputs of its own."""

    def __init__(self, snippets):
        super().__init__()
        self.parts = nn.ModuleList(built(s) for s in snippets)
        self.counts = [len(s.given) for s in snippets]

    def forward(self, *inputs):
        feed, outputs = iter(inputs), []
        for part, count in zip(self.parts, self.counts, strict=True):
            outputs.append(part(*(next(feed) for _ in range(count))))
        return tuple(outputs)


def built(snippet):
    torch.manual_seed(0)
    return snippet.build().eval()


def given(snippets):
    return tuple(tensor.clone() for s in snippets for tensor in s.given)


def bundle_of(name):
    names = list(BY_NAME)
    start = names.index(name) // BUNDLE * BUNDLE
    return [BY_NAME[n] for n in names[start : start + BUNDLE]]


# -- front ends -------------------------------------------------------------------------------------------------------


def by_fx(name):
    snippet = BY_NAME[name]
    return finds(Program.of(built(snippet), given([snippet]), {}).canon())


def by_make_fx(name):
    snippet = BY_NAME[name]
    module = built(snippet)
    graph = make_fx(lambda *a: module(*a), tracing_mode="fake", pre_dispatch=True, _allow_non_fake_inputs=True)(
        *given([snippet])
    ).graph
    return found(graph)


def by_export(name):
    return found(apart(exported(bundle_of(name)[0].name), name))


def by_core(name):
    return found(apart(decomposed(bundle_of(name)[0].name), name))


def by_dynamo(name):
    return found(apart(compiled(bundle_of(name)[0].name), name))


@cache
def program(first):
    snippets = bundle_of(first)
    return torch.export.export(Together(snippets), given(snippets))


@cache
def exported(first):
    return program(first).module(check_guards=False)


@cache
def decomposed(first):
    return program(first).run_decompositions().module(check_guards=False)


@cache
def compiled(first):
    caught = []

    def backend(module, inputs):
        for node, value in zip(module.graph.find_nodes(op="placeholder"), inputs, strict=True):
            node.meta["val"] = value
        caught.append(module)
        return module.forward

    torch._dynamo.reset()
    snippets = bundle_of(first)
    with torch._dynamo.config.patch(allow_rnn=True):
        torch.compile(Together(snippets), backend=backend, fullgraph=True)(*given(snippets))
    return caught[0]


HOW = {"fx": by_fx, "make_fx": by_make_fx, "export": by_export, "core": by_core, "dynamo": by_dynamo}

# -- graphs -----------------------------------------------------------------------------------------------------------


def apart(module, name):
    """What one snippet of a bundle computes, as a graph of its own."""
    index = [s.name for s in bundle_of(name)].index(name)
    results = results_of(module, bundle_of(name)[0].name)[index]
    needed, queue = set(), list(results)
    while queue:
        node = queue.pop()
        if node not in needed:
            needed.add(node)
            queue += node.all_input_nodes
    graph, env = fx.Graph(module), {}
    for node in module.graph.nodes:
        if node in needed:
            env[node] = graph.node_copy(node, env.__getitem__)
    graph.output(tuple(env[r] for r in results))
    return graph


def results_of(module, first):
    """The output nodes of each snippet: as many as it returns tensors."""
    args = module.graph.output_node().args[0]
    flat = [n for n in torch.utils._pytree.tree_leaves(args) if isinstance(n, fx.Node)]
    feed = iter(flat)
    return [[next(feed) for _ in range(count)] for count in counts_of(first)]


@cache
def counts_of(first):
    return [len(torch.utils._pytree.tree_leaves(built(s)(*given([s])))) for s in bundle_of(first)]


def found(graph):
    for node in graph.nodes:
        if "val" not in node.meta and "example_value" in node.meta:
            node.meta["val"] = node.meta["example_value"]
        if node.op == "get_attr" and "val" not in node.meta:
            node.meta["val"] = operator.attrgetter(node.target)(graph.owning_module)
    canon = Canon(lambda path: None, lambda path: graph.owning_module.get_submodule(path))
    canon.run("", graph)
    return finds(canon)
