"""A plan from end to end: what it promises, applied, exported, compiled, certified, held out."""

import json
import math
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from torchsheaf.network.aten import trace_aten
from torchsheaf.precision import Plan, check_certificate, plan, zoo
from torchsheaf.precision.apply import apply_assignment, stored_bytes
from torchsheaf.precision.certificate import save_certificate
from torchsheaf.precision.dataflow import read_dataflow
from torchsheaf.precision.execute import run_assigned, run_exact, uniform
from torchsheaf.precision.measure import measure
from torchsheaf.precision.memory import count_memory


@pytest.fixture(scope="module")
def toy() -> tuple[nn.Module, Tensor, Plan]:
    model, x = zoo.toy_transformer()
    return model, x, plan(model, x, 1.2e-3)


@pytest.fixture(scope="module")
def digits() -> tuple[nn.Module, Tensor, Plan]:
    model, x = zoo.digits_mlp(150)
    images, _ = zoo.digits()
    found = plan(model, x, 1e-2, norm="max", holdout=images[1264:1264 + 512])  # fmt: skip
    return model, x, found


def error_of(module: nn.Module, x: Tensor, p: Plan) -> float:
    with torch.no_grad():
        out = module(x)
    out = out[0] if isinstance(out, tuple) else out
    exact = run_exact(p.flow, (x,)).outputs[0]
    return float((out.double() - exact).abs().max())


def test_the_plan_mixes_formats_and_keeps_its_budget(toy: tuple[nn.Module, Tensor, Plan]) -> None:
    model, x, p = toy
    assert len(set(p.assignment.values())) >= 2
    assert p.measured.value <= p.budget
    assert p.cost.relative < 0.6
    assert p.memory.total < p.memory.weights_fp32 + p.memory.activations_fp32
    assert p.predicted.low <= p.predicted.rms <= p.predicted.high
    assert 0 < p.measured.reference_estimate < 1e-12


def test_apply_runs_the_plan_for_real(toy: tuple[nn.Module, Tensor, Plan]) -> None:
    model, x, p = toy
    module = p.apply()
    assert error_of(module, x, p) == pytest.approx(p.measured.largest, rel=1e-9)
    assert error_of(module, x, p) <= p.budget
    with torch.no_grad():
        assert module(x).dtype == model(x).dtype
        assert torch.equal(module(x), run_assigned(p.flow, (x,), p.by_call).outputs[0])
    casts = [n for n in module.graph.nodes if "_to_copy" in str(n.target)]  # type: ignore[union-attr]
    assert casts, "casts are explicit calls"
    kept = {b.dtype for b in module.buffers()}
    assert {torch.float32, torch.float16} <= kept or {torch.float32, torch.bfloat16} <= kept
    assert stored_bytes(module) < 0.8 * sum(q.nbytes for q in model.parameters())
    assert stored_bytes(module) == pytest.approx(p.memory.weights, rel=0.02)


def test_applied_modules_export_and_compile(digits: tuple[nn.Module, Tensor, Plan]) -> None:
    import warnings

    model, x, p = digits
    module = p.apply()
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        exported = torch.export.export(module, (x,)).module()
        assert torch.equal(exported(x), module(x))
        compiled = torch.compile(module, backend="aot_eager", fullgraph=True)
        assert torch.equal(compiled(x), module(x))


@pytest.mark.parametrize("form", ["fp32", "tf32", "bf16", "fp16", "fp8_e4m3", "fp8_e5m2", "fp64"])
@pytest.mark.parametrize("name", ["digits-mlp", "block-post-ln"])
def test_apply_equals_the_reference_execution_in_every_format(form: str, name: str) -> None:
    model, x = zoo.digits_mlp(5) if name == "digits-mlp" else zoo.block(False)
    flow = read_dataflow(trace_aten(model, x))
    assignment = uniform(flow, form)
    with torch.no_grad():
        assert torch.equal(
            apply_assignment(flow, assignment)(x), run_assigned(flow, (x,), assignment).outputs[0]
        )


def test_uniform_float32_is_the_model_itself() -> None:
    for build in (zoo.block, zoo.sharp_block):
        model, x = build(True)
        flow = read_dataflow(trace_aten(model, x))
        with torch.no_grad():
            run = run_assigned(flow, (x,), uniform(flow, "fp32")).outputs[0]
            assert torch.allclose(run, model(x), atol=1e-6)


def test_batch_norm_and_convolutions_apply_and_export() -> None:
    model, x = zoo.digits_resnet(5)
    p = plan(model, x, 5e-2, formats=("fp32", "bf16"))
    assert error_of(p.apply(), x, p) <= 5e-2


def test_the_held_out_statement(digits: tuple[nn.Module, Tensor, Plan]) -> None:
    _, _, p = digits
    assert p.statement is not None
    assert p.holdout is not None
    assert p.statement.samples == 512
    over = sum(e > p.budget for e in p.holdout.errors)
    assert p.statement.violations == over
    if over == 0:
        assert p.statement.probability == pytest.approx(1 - 0.05 ** (1 / 512))


def test_the_certificate_checks_without_torch(
    toy: tuple[nn.Module, Tensor, Plan], tmp_path: Path
) -> None:
    _, _, p = toy
    path = tmp_path / "certificate.json"
    save_certificate(p.certificate, path)
    script = check_certificate.__file__
    done = subprocess.run(
        [sys.executable, "-I", "-S", script, str(path)], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "PROVED feasible" in done.stdout
    assert "chosen on these, so no statement on others" in done.stdout
    data = json.loads(path.read_text())
    label = next(iter(p.assignment))
    data["section"][label] = "fp16" if p.assignment[label] != "fp16" else "fp32"
    data["digest"] = check_certificate.digest(data)
    with pytest.raises(check_certificate.Rejected):
        check_certificate.check(data)


def test_pins_by_label_module_and_operator() -> None:
    model, x = zoo.block(False)
    graph = trace_aten(model, x)
    p = plan(graph, x, 0.5, pins={"attention": "fp32", "native_layer_norm": "bf16", "up": "fp16",
                                "aten.add": "fp32"})  # fmt: skip
    for label, form in p.assignment.items():
        if label.startswith("attention"):
            assert form == "fp32"
        if "norm" in label:
            assert form == "bf16"
        if label.startswith("add"):
            assert form == "fp32"
    assert p.assignment["up"] == "fp16"
    assert ("up", "fp16") in p.obstruction.obstructed, "pins apart forbid a uniform section"
    assert p.certificate["pins"]["up"] == "fp16"


def test_groups_and_tied_weights_share_a_format() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.tokens = nn.Embedding(40, 16)
            self.norm = nn.LayerNorm(16)

        def forward(self, ids: Tensor) -> Tensor:
            return self.norm(self.tokens(ids)) @ self.tokens.weight.T

    torch.manual_seed(0)
    model, ids = Tied().eval(), torch.arange(12).view(2, 6)
    graph = trace_aten(model, ids)
    p = plan(graph, ids, 3e-2, pins={"tokens": "fp32"})
    (product,) = (v for k, v in p.assignment.items() if k not in ("tokens", "norm"))
    assert product == "fp32", "the head reads the embedding's weight"
    assert p.memory.weights == 40 * 16 * 4 + (64 + 64 if p.assignment["norm"] != "fp32" else 128)
    loose = plan(graph, ids, 3e-1, pins={"tokens": "fp32"}, tie_weights=False)
    assert set(loose.assignment.values()) != {"fp32"}
    grouped = plan(graph, ids, 3e-1, tie_weights=False, together=[["tokens", "norm"]])
    assert grouped.assignment["tokens"] == grouped.assignment["norm"]


def test_overflow_is_shown_before_it_happens() -> None:
    class Large(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.log(torch.exp(11.5 + x))

    x = torch.rand(4, 5, generator=torch.Generator().manual_seed(0))
    p = plan(Large(), x, 0.2)
    row = next(h for h in p.headroom if h.operation == "exp")
    assert "fp16 ends at 65504" in row.refused["fp16"]
    assert p.assignment["exp"] != "fp16"
    assert row.largest > 65504


@pytest.mark.parametrize("norm", ["max", "rms", "relative"])
def test_every_norm_keeps_its_budget(norm: str) -> None:
    model, x = zoo.block(False)
    graph = trace_aten(model, x)
    flow = read_dataflow(graph)
    budget = 0.6 * measure(flow, (x,), uniform(flow, "bf16"), norm).value
    p = plan(graph, x, budget, norm=norm, formats=("fp32", "bf16"))
    assert p.measured.value <= budget
    assert "bf16" in p.assignment.values()
    assert 0.3 < p.predicted.value / p.measured.value < 3


def test_full_adjoint_and_probes_agree() -> None:
    model, x = zoo.digits_mlp(50)
    graph = trace_aten(model, x[:8])
    few = plan(graph, x[:8], 10.0, formats=("fp16",), probes=16)
    full = plan(graph, x[:8], 10.0, formats=("fp16",), probes="full")
    assert few.predicted.rms == pytest.approx(full.predicted.rms, rel=0.15)
    assert full.predicted.low == full.predicted.high == full.predicted.rms


def test_the_plan_never_touches_global_state(digits: tuple[nn.Module, Tensor, Plan]) -> None:
    model, x, _ = digits
    torch.manual_seed(3)
    before = torch.random.get_rng_state()
    weights = [p.detach().clone() for p in model.parameters()]
    graph = trace_aten(model, x)
    plan(graph, x, 1e-2)
    assert torch.equal(before, torch.random.get_rng_state())
    assert all(torch.equal(a, b) for a, b in zip(weights, model.parameters(), strict=True))
    assert torch.get_default_dtype() == torch.float32


def test_halving_every_weight_halves_their_memory(toy: tuple[nn.Module, Tensor, Plan]) -> None:
    p = toy[2]
    memory = count_memory(p.flow, uniform(p.flow, "fp16"))
    assert memory.weights == pytest.approx(memory.weights_fp32 / 2)


def test_outputs_of_several_tensors_and_structures() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(6, 3), nn.Linear(6, 2)

        def forward(self, x: Tensor) -> dict[str, Tensor]:
            return {"first": self.a(x), "second": torch.tanh(self.b(x))}

    torch.manual_seed(0)
    x = torch.randn(4, 6)
    p = plan(Two(), x, 1e-2)
    with torch.no_grad():
        out = p.apply()(x)
    assert set(out) == {"first", "second"}
    assert out["second"].shape == (4, 2)
    assert math.isfinite(p.predicted.value)


class Counted(nn.Module):
    """Integers to floating numbers, then a layer."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer, self.classes = nn.Linear(classes, 4), classes

    def forward(self, x: Tensor) -> Tensor:
        hot = nn.functional.one_hot(x, self.classes) if x.ndim == 1 else x
        return self.layer(hot.to(self.layer.weight.dtype)).relu()


def own_error(p: Plan) -> Mapping[str, Tensor]:
    (name,) = p.flow.find("aten._to_copy")
    return p.table.kernel[name]


def test_integers_become_numbers_with_an_error_of_their_own() -> None:
    hot = plan(Counted(6), torch.arange(5), 0.1)
    assert hot.measured.value <= 0.1
    assert bool((own_error(hot)["bf16"] == 0).all()), "0 and 1 are exact"
    counts = plan(Counted(3), torch.tensor([[4097, 2049, 1025], [3, 259, 513]]), 1e3)
    own = own_error(counts)
    assert float(own["bf16"].mean()) > float(own["fp16"].mean()) > float(own["fp32"].mean()) == 0


def test_a_plan_tells_how_far_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    import importlib

    module = importlib.import_module("torchsheaf.precision.plan")
    asked: list[tuple[bool | None, str]] = []
    told: list[float] = []

    @contextmanager
    def bar(show: bool | None, name: str) -> Iterator[Callable[[float], None]]:
        asked.append((show, name))
        yield told.append

    monkeypatch.setattr(module, "progress_bar", bar)
    lines: list[str] = []
    net = nn.Sequential(nn.Linear(4, 4), nn.Tanh())
    plan(net, torch.ones(2, 4), 1e-2, log=lines.append)
    assert asked == [(None, "plan")]
    assert len(lines) >= 1
    assert told == sorted(told)
    assert 0 <= told[0] < told[-1] <= 1
    assert len(told) == 4 + len(lines)


def test_a_plan_runs_the_model_as_often_as_it_says(monkeypatch: pytest.MonkeyPatch) -> None:
    from torchsheaf.precision import admission, arguments, tighten

    runs: list[str] = []

    def counted(part: str) -> Callable[..., Any]:
        def run(*arguments: Any, **options: Any) -> Any:
            runs.append(part)
            return run_exact(*arguments, **options)

        return run

    for part in (admission, arguments, tighten):
        monkeypatch.setattr(part, "run_exact", counted(part.__name__.rsplit(".", 1)[-1]))
    net = nn.Sequential(nn.Linear(4, 4), nn.Tanh())
    plan(net, torch.ones(2, 4), 1.0, calibration=torch.zeros(2, 4))
    assert sorted(runs) == ["admission", "admission", "arguments", "tighten", "tighten"]


class Turned(nn.Module):
    """Its output lies in memory in another order than that of its axes."""

    def __init__(self) -> None:
        super().__init__()
        self.map = nn.Linear(6, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.map(x).transpose(1, 2)


def test_outputs_may_lie_in_memory_in_any_order() -> None:
    torch.manual_seed(0)
    x = torch.randn(3, 7, 6)
    graph = trace_aten(Turned(), x)
    # bf16 is tried and is over: then the worst output gets a row of its own.
    few, full = (plan(graph, x, 1e-3, formats=("fp32", "bf16"), probes=n) for n in (4, "full"))
    assert any(len(a.problem.rows) > 1 for a in few.rounds)
    assert few.assignment == full.assignment == {"map": "fp32"}
    assert few.predicted.rms == pytest.approx(full.predicted.rms, rel=0.5)


class Stepping(nn.Module):
    def __init__(self, step: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.step = step

    def forward(self, x: Tensor) -> Tensor:
        return self.step(8 * x) / 8


def test_what_jumps_as_its_operand_moves_is_flagged_and_nothing_else() -> None:
    x = torch.linspace(-1.0, 1.0, 24).reshape(8, 3) + 0.01
    steps: dict[str, Callable[[Tensor], Tensor]] = {
        "floor": torch.floor,
        "_to_copy": lambda h: h.long().float(),
        "div": lambda h: torch.div(h, 0.7, rounding_mode="floor"),
    }
    for name, step in steps.items():
        flagged = [f for f in plan(Stepping(step), x, 10.0).flags if "comparisons" in f]
        assert len(flagged) == 1, name
        assert f"1 comparisons or whole parts of floating values ({name}" in flagged[0]
    counted = torch.arange(24).reshape(8, 3)
    flags = plan(Stepping(lambda h: (h > 2).float() * 0.1), counted, 10.0).flags
    assert not any("comparisons" in f for f in flags)
