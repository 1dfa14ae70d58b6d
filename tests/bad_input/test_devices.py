"""Tensors beside a model on another device, and a card that has no room or no name."""

from collections.abc import Callable
from importlib import import_module
from itertools import count
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import torchsheaf as ts
from tests.reference.networks import randn, relu_mlp
from tests.reference.pretended_cuda import CARD, PretendedCuda
from torchsheaf.harmonic.curvature import Curvature
from torchsheaf.precision import profile as profile_file
from torchsheaf.precision import ranges, seed_surface
from torchsheaf.precision.arguments import read_model, runnable
from torchsheaf.precision.formats import find_format
from torchsheaf.train import JointEuler, SheafTrainer, fit
from torchsheaf.train import parallel as parallel_file
from torchsheaf.train.checkpoint import load_checkpoint
from torchsheaf.train.rule import LocalGradients

# the functions have the names of their files
conformance_file = import_module("torchsheaf.precision.conformance")
refute_file = import_module("torchsheaf.precision.refute")

X, Y = randn(1, 5, 3), torch.tensor([0, 1, 0, 1, 1])
BOTH = r"cpu.*cuda:0.*write .*to\('cuda:0'\)"


@pytest.mark.parametrize(
    "use",
    [
        lambda net, sheaf, there: ts.encode(net, X),
        lambda net, sheaf, there: sheaf.forward(X),
        lambda net, sheaf, there: ts.hold(sheaf, X),
        lambda net, sheaf, there: ts.hold(sheaf, {"input": X}),
        lambda net, sheaf, there: ts.watch(net, (there, Y)).sheaf.trace(X),
        lambda net, sheaf, there: SheafTrainer(net).local_gradients(X, Y),
        lambda net, sheaf, there: ts.discord(h := ts.hold(sheaf, there), sheaf_values(h)),
        lambda net, sheaf, there: ts.spectrum(h := ts.hold(sheaf, there), at=sheaf_values(h)),
        lambda net, sheaf, there: JointEuler().start(net, X, randn(2, 5, 2)),
    ],
)
def test_direct_calls_name_both_devices(use: Callable[..., Any]) -> None:
    with PretendedCuda():
        net, there = relu_mlp([3, 4, 2], 0).to(CARD), X.to(CARD)
        with pytest.raises(ValueError, match=BOTH):
            use(net, ts.encode(net, there), there)


def sheaf_values(problem: ts.Problem) -> ts.Cochain:
    return ts.Cochain({n: t.cpu() for n, t in problem.start("forward").items()})


def test_a_model_on_the_cpu_may_be_moved_instead() -> None:
    with PretendedCuda():
        message = r"input 0 is on cuda:0, the model's weights on cpu; .*or model\.to\('cuda:0'\)"
        with pytest.raises(ValueError, match=message):
            ts.encode(relu_mlp([3, 4, 2], 0), X.to(CARD))


def test_what_fails_in_the_model_itself_is_told_with_devices() -> None:
    class Mixed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear, self.shift = nn.Linear(3, 2).double(), torch.ones(2)

        def forward(self, x: Tensor) -> Tensor:
            return self.linear(x) + self.shift

    with PretendedCuda():
        net = Mixed().to(CARD)  # the shift is no buffer, and stays
        message = r"\(5, 3\) of torch.float64 on cuda:0; the weights are torch.float64 on cuda:0"
        with pytest.raises(ValueError, match=message):
            ts.encode(net, X.to(CARD))


def test_a_checkpoint_is_not_continued_with_a_generator_elsewhere(tmp_path: Path) -> None:
    class Short(torch.Generator):
        """As a card's generator: its state is 16 bytes."""

        def get_state(self) -> Tensor:
            return torch.zeros(16, dtype=torch.uint8)

    def run(generator: torch.Generator, epochs: int) -> None:
        net = relu_mlp([3, 4, 2], 0)
        step = torch.optim.SGD(net.parameters(), lr=0.1)
        fit(
            SheafTrainer(net), (X, Y), step, epochs=epochs, checkpoint=tmp_path / "run",
            generator=generator, progress=False,
        )  # fmt: skip

    run(Short(), 1)
    with pytest.raises(ValueError, match="generator on another kind of device than cpu"):
        run(torch.Generator(), 2)


def test_a_checkpoint_from_a_card_can_be_read_without_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = {}

    def load(path: Path, **options: Any) -> dict[str, int]:
        asked.update(options)
        return {"torchsheaf.fit": 1}

    monkeypatch.setattr(torch, "load", load)
    load_checkpoint(tmp_path / "run")
    assert asked == {"map_location": "cpu", "weights_only": True}


def full(*_: Any, **__: Any) -> Any:
    raise torch.OutOfMemoryError("CUDA out of memory")


def test_no_memory_is_not_no_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    net = relu_mlp([3, 4, 2], 0, dtype=torch.float32)
    flow, inputs = read_model(net, X.float()), (X.float(),)
    form, call = find_format("bf16"), flow.choices[0]
    values = ranges.run_exact(flow, inputs, keep=True).values
    monkeypatch.setattr(ranges.AssignedRun, "step", full)
    monkeypatch.setattr(ranges, "_KERNELS", {})
    with pytest.raises(torch.OutOfMemoryError):
        ranges.has_kernel(flow, call, form, values)
    assert not ranges._KERNELS
    monkeypatch.setattr(refute_file, "run_assigned", full)
    with pytest.raises(torch.OutOfMemoryError):
        refute_file.refute(net, X.float(), "bf16", 1e-3)
    monkeypatch.setattr(seed_surface, "measure", full)
    with pytest.raises(torch.OutOfMemoryError):
        seed_surface.uniform_error(flow, inputs, "bf16")
    for name in ("check_unary", "check_sampled"):
        monkeypatch.setattr(conformance_file, name, full)
        with pytest.raises(torch.OutOfMemoryError):
            conformance_file.conformance(
                ("fp32",), operators=("exp" if name == "check_unary" else "mm",)
            )
    monkeypatch.setattr("torchsheaf.precision.arguments.run_exact", full)
    with pytest.raises(torch.OutOfMemoryError):
        runnable(flow, inputs)


def test_no_memory_is_not_no_second_derivative(monkeypatch: pytest.MonkeyPatch) -> None:
    net = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)).double()
    problem = ts.hold(ts.encode(net, X), X)
    problem = problem.pin(ts.Pin("output", torch.zeros(2, dtype=torch.float64)))
    made = Curvature.__init__

    def in_a_small_space(self: Curvature, *given: Any, **more: Any) -> None:
        with monkeypatch.context() as patched:
            patched.setattr(torch.func, "vjp", full)
            made(self, *given, **more)

    monkeypatch.setattr(Curvature, "__init__", in_a_small_space)
    with pytest.raises(torch.OutOfMemoryError):
        ts.harmonic_extension(problem)


def test_a_profile_names_its_own_card(monkeypatch: pytest.MonkeyPatch) -> None:
    named: list[str] = []
    with PretendedCuda():
        monkeypatch.setattr(profile_file, "_seconds", lambda run, device: 1.0)
        monkeypatch.setattr(
            torch.cuda, "get_device_name", lambda device: named.append(device) or "second card"
        )
        assert "second card" in profile_file.measure_profile(device="cuda:1", size=4).source
    assert named == ["cuda:1"]


def test_the_clock_starts_when_the_card_has_warmed_up(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[str] = []
    ticks = count()
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device: seen.append(f"wait {device}"))
    monkeypatch.setattr(
        profile_file.time, "perf_counter", lambda: seen.append("clock") or next(ticks) / 1000
    )
    profile_file._seconds(lambda: seen.append("run"), "cuda:1")
    assert seen[:3] == ["run", "wait cuda:1", "clock"]


def test_gradients_of_processes_keep_their_type_and_count(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two processes with the same sums: every sum is doubled, in its own type, and 999 + 999."""
    monkeypatch.setattr(parallel_file, "is_parallel", lambda: True)
    reduced: list[torch.dtype] = []

    def all_reduce(flat: Tensor) -> None:
        reduced.append(flat.dtype)
        flat.mul_(2)

    monkeypatch.setattr(parallel_file.dist, "all_reduce", all_reduce)
    sums = {
        "a": torch.ones(2, 3, dtype=torch.bfloat16),
        "b": torch.ones(4, dtype=torch.float32),
        "c": torch.full((2,), 3.0, dtype=torch.bfloat16),
    }
    found = parallel_file.reduce_gradients(LocalGradients(999, sums))
    assert found.count == 1998
    assert {n: t.dtype for n, t in found.sums.items()} == {n: t.dtype for n, t in sums.items()}
    assert all(torch.equal(found.sums[n], 2 * t) for n, t in sums.items())
    assert len(reduced) == 3  # the count, and one buffer for each type
    assert parallel_file.reduce_gradients(LocalGradients(70_000, sums)).count == 140_000
