"""Random assignment problems and random small kernel graphs, for tests of the precision part."""

import random

import torch
from torch import Tensor

from torchsheaf.network.aten import AtenCall, AtenGraph, Ref
from torchsheaf.precision.problem import AssignmentProblem, Cast, Row

FORMATS = ("fp32", "bf16", "fp16")
aten = torch.ops.aten


def random_problem(seed: int, size: int) -> AssignmentProblem:
    """A random graph with shared casts, pruned stalks, sometimes a tie, sometimes infeasible."""
    r = random.Random(seed)
    ops = [f"op{i}" for i in range(size)]
    stalks, cost, unary = {}, {}, {}
    for o in ops:
        stalks[o] = FORMATS if r.random() < 0.8 else tuple(sorted(r.sample(FORMATS, 2)))
        work, error = r.random() + 0.1, r.random() ** 3
        cost[o] = {"fp32": 8 * work, "bf16": work, "fp16": work}
        unary[o] = {"fp32": 1e-6, "bf16": 64 * error, "fp16": error}
    prices = [r.random() * 0.5 for _ in ops]
    casts = []
    for i in range(1, size):
        for j in sorted(set(r.choices(range(i), k=r.randint(1, 2)))):
            table = {(s, t): 0.0 if s == t else prices[j] for s in FORMATS for t in FORMATS}
            casts.append(Cast(ops[j], ops[i], ops[j], table))
    pair = {
        i: {
            (s, t): r.random() * (12.8 if t == "bf16" else 0.2)
            for s in FORMATS
            for t in FORMATS
            if s != t and t != "fp32"
        }
        for i in range(len(casts))
    }
    ties = ((ops[0], ops[-1]),) if r.random() < 0.3 else ()
    limit = r.random() * size * 2 + 0.01 if r.random() < 0.9 else 1e-9
    return AssignmentProblem(stalks, cost, tuple(casts), (Row("rms", limit, unary, pair),), ties)


WIDTH = 6


def random_graph(seed: int, size: int) -> tuple[AtenGraph, Tensor]:
    """A random kernel graph on (4, 6) matrices, with an input."""
    r = random.Random(seed)
    g = torch.Generator().manual_seed(seed)
    constants: dict[str, Tensor] = {}
    calls: list[AtenCall] = []

    def constant(*shape: int) -> Ref:
        name = f"w{len(constants)}"
        constants[name] = torch.randn(*shape, generator=g) / WIDTH**0.5
        return Ref(name)

    def call(target: object, *args: object) -> Ref:
        name = f"c{len(calls)}"
        calls.append(AtenCall(name, str(target), target, args, {}, (4, WIDTH), torch.float32))
        return Ref(name)

    live = [Ref("x")]
    for _ in range(size):
        a, b = r.choice(live), r.choice(live)
        kind = r.randrange(11)
        if kind == 0:
            live.append(call(aten.mm.default, a, constant(WIDTH, WIDTH)))
        elif kind == 1:
            weight = constant(WIDTH, WIDTH)
            live.append(call(aten.addmm.default, constant(WIDTH), a, weight))
        elif kind == 2:
            live.append(call(aten.add.Tensor, a, b))
        elif kind == 3:
            live.append(call(aten.mul.Tensor, call(aten.tanh.default, a), b))
        elif kind == 4:
            live.append(call(aten.relu.default, a))
        elif kind == 5:
            live.append(call(aten._softmax.default, a, -1, False))
        elif kind == 6:
            live.append(call(aten.gelu.default, a))
        elif kind == 7:
            live.append(call(aten.exp.default, call(aten.tanh.default, a)))
        elif kind == 8:
            safe = call(aten.add.Tensor, call(aten.sigmoid.default, b), 0.5)
            live.append(call(aten.div.Tensor, a, safe))
        elif kind == 9:
            name = f"c{len(calls)}"
            args = (a, [WIDTH], constant(WIDTH), constant(WIDTH), 1e-5)
            target = aten.native_layer_norm.default
            calls.append(AtenCall(name, str(target), target, args, {}, (4, WIDTH), torch.float32))
            live.append(_first(calls, name))
        else:
            live.append(call(aten.sub.Tensor, a, call(aten.sin.default, b)))
    x = torch.randn(4, WIDTH, generator=g)
    graph = AtenGraph(
        tuple(calls), ("x",), constants, (live[-1],), {"x": ((4, WIDTH), torch.float32)}, {}
    )
    return graph, x


def _first(calls: list[AtenCall], name: str) -> Ref:
    import operator

    out = f"c{len(calls)}"
    args = (Ref(name), 0)
    calls.append(AtenCall(out, "getitem", operator.getitem, args, {}, (4, WIDTH), torch.float32))
    return Ref(out)
