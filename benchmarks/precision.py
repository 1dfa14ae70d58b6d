"""Does the prediction hold, does the plan beat autocast's list, and what does the analysis cost?

Five questions, a part or two each; results and environment go to results/precision.json.

    zoo        predicted/measured RMS error per model and format
    analysis   time of the probe analysis in forward passes, at 2, 4 and 8 probes
    autocast   the plan against autocast's list at autocast's own measured error
    holdout    violations on fresh inputs against the stated probability, three budgets
    holdout of gpt-like    the same, on fewer inputs
    timing     seconds and peak bytes of fp32, autocast, uniform and planned runs (CUDA if there is)

    python -m benchmarks.precision                # all parts, some minutes on one core
    python -m benchmarks.precision --part timing
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn

from benchmarks.measurement import update_result
from torchsheaf.network.aten import trace_aten
from torchsheaf.precision import FORMATS, plan, zoo
from torchsheaf.precision.apply import apply_assignment, stored_bytes
from torchsheaf.precision.autocast import autocast_assignment
from torchsheaf.precision.dataflow import read_dataflow
from torchsheaf.precision.execute import uniform
from torchsheaf.precision.measure import chunks, measure, measure_all, state
from torchsheaf.precision.predict import known_shift, predict
from torchsheaf.precision.price import price
from torchsheaf.precision.profile import load_profile, wait_for
from torchsheaf.precision.ranges import measure_ranges, needed_range
from torchsheaf.precision.sensitivity import analyse

LOW = ("fp16", "bf16")


def zoo_part() -> list[dict[str, Any]]:
    rows = []
    for name, build in {**zoo.ZOO, "sharp attention": zoo.sharp_block}.items():
        model, x = build()
        flow = read_dataflow(trace_aten(model, x))
        names = ["fp32", "tf32", "bf16", "fp16", "fp8_e4m3", "fp8_e5m2"]
        table = analyse(flow, (x,), [FORMATS[f] for f in names], probes=4)
        needs = needed_range(flow, measure_ranges(flow, (x,)))
        for form in names:
            # e4m3 has no infinity, which a causal mask needs: those operations stay in bf16.
            fits = {c: needs[c].fits(FORMATS[form], 1.0) for c in flow.choices}
            assignment = {c: f if fits[c] else "bf16" for c, f in uniform(flow, form).items()}
            shift = known_shift(flow, (x,), assignment, "max")
            predicted = predict(flow, table, assignment, "max", shift)
            measured = measure(flow, (x,), assignment, "max")
            rows.append(
                {
                    "model": name,
                    "operations": len(flow.choices),
                    "format": form,
                    "kept_in_bf16": sum(not f for f in fits.values()),
                    "measured_rms": measured.rms,
                    "predicted_over_measured_rms": predicted.rms / measured.rms,
                    "predicted_over_measured_max": predicted.value / measured.value,
                    "probe_spread": predicted.spread,
                }
            )
    return rows


def analysis_part() -> list[dict[str, Any]]:
    rows = []
    formats = [FORMATS[f] for f in ("fp32", "bf16", "fp16")]
    for name in ("toy-transformer", "gpt-like"):
        model, x = zoo.ZOO[name]()
        start = time.perf_counter()
        flow = read_dataflow(trace_aten(model, x))
        export = time.perf_counter() - start
        for probes in (2, 4, 8):
            ratios = []
            # Forward and analysis alternate, so that a busy machine slows both.
            for _ in range(5):
                forward = time_module(lambda: model(x), budget=0.1)  # noqa: B023
                start = time.perf_counter()
                analyse(flow, (x,), formats, probes=probes)
                ratios.append((time.perf_counter() - start) / forward)
            ratios.sort()
            rows.append(
                {
                    "model": name,
                    "probes": probes,
                    "forward_seconds": forward,
                    "export_seconds": export,
                    "analysis_in_forwards": ratios[2],
                    "best": ratios[0],
                    "worst": ratios[-1],
                }
            )
    return rows


def autocast_part() -> list[dict[str, Any]]:
    rows = []
    for name in ("toy-transformer", "gpt-like"):
        model, x = zoo.ZOO[name]()
        flow = read_dataflow(trace_aten(model, x))
        for profile in ("stated", "h100"):
            for form in LOW:
                listed = autocast_assignment(flow, form)
                error = measure(flow, (x,), listed, "max").value
                found = plan(
                    flow.graph, x, error, formats=("fp32", form), margin=1.0, profile=profile
                )
                their = price(flow, listed, load_profile(profile))
                with torch.no_grad():
                    real = autocast_run(model, (x,), FORMATS[form].storage)()
                    exact = model.double()(x)
                model.float()
                rows.append(
                    {
                        "model": name,
                        "format": form,
                        "profile": profile,
                        "autocast_list_error": error,
                        "torch_autocast_cpu_error": float((real.double() - exact).abs().max()),
                        "autocast_list_cost": their.relative,
                        "plan_error": found.measured.value,
                        "plan_cost": found.cost.relative,
                        "plan_is_no_dearer": found.cost.value <= their.value,
                        "proved_gap": found.proof.gap if profile == "stated" else None,
                    }
                )
    return rows


def violations(name: str, calibration: int, held_out: int, fresh: int) -> list[dict[str, Any]]:
    rows = []
    model, x = zoo.ZOO[name]()
    flow = read_dataflow(trace_aten(model, x))
    words, generator = int(model.tokens.num_embeddings), torch.Generator().manual_seed(11)

    def draw(samples: int) -> torch.Tensor:
        return torch.randint(words, (samples, x.shape[1]), generator=generator)

    for form in LOW:
        base = measure(flow, (x,), uniform(flow, form), "max").value
        for share in (0.5, 0.8, 1.2):
            budget = share * base
            found = plan(
                flow.graph, x, budget, formats=("fp32", form), calibration=draw(calibration),
                holdout=draw(held_out),
            )  # fmt: skip
            again = measure_all(flow, chunks(flow, draw(fresh)), found.by_call, "max")
            said, then = found.statement, state(again.errors, budget)
            assert said is not None
            rows.append(
                {
                    "model": name,
                    "format": form,
                    "budget": budget,
                    "cost": found.cost.relative,
                    "held_out_violations": said.violations,
                    "held_out": said.samples,
                    "stated_probability": said.probability,
                    "fresh_violations": then.violations,
                    "fresh": then.samples,
                    "within_statement": then.violations / then.samples <= said.probability,
                }
            )
    return rows


def timing_part() -> list[dict[str, Any]]:
    rows = []
    devices = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
    for device in devices:
        for name in ("toy-transformer", "gpt-like"):
            model, x = zoo.ZOO[name]()
            flow = read_dataflow(trace_aten(model, x))
            base = measure(flow, (x,), uniform(flow, "bf16"), "max").value
            found = plan(flow.graph, x, 0.8 * base, formats=("fp32", "bf16"))
            where, inputs = model.to(device), x.to(device)
            runs: dict[str, tuple[Callable[[], Any], int]] = {}
            size = stored_bytes(where)
            runs["fp32, eager"] = (lambda: where(inputs), size)  # noqa: B023
            for form in LOW:
                call = autocast_run(where, (inputs,), FORMATS[form].storage, device)
                runs[f"autocast {form}"] = (call, size)
            modules = {f"uniform {f}": uniform(flow, f) for f in ("fp32", *LOW)}
            modules["plan"] = found.by_call
            for label, assignment in modules.items():
                module = apply_assignment(flow, assignment).to(device)
                call = _bind(module, inputs)
                runs[label] = (call, stored_bytes(module))
            with torch.no_grad():
                exact = model.cpu().double()(x)
            model.float().to(device)
            for label, (call, size) in runs.items():
                with torch.no_grad():
                    error = float((call().cpu().double() - exact).abs().max())
                rows.append(
                    {
                        "device": device,
                        "model": name,
                        "way": label,
                        "milliseconds": 1e3 * time_module(call, device),
                        "weight_bytes": size,
                        "peak_bytes": peak_bytes(call, device),
                        "error": error,
                        "budget": found.budget if label == "plan" else None,
                    }
                )
    return rows


def time_module(run: Callable[[], Any], device: str = "cpu", budget: float = 0.3) -> float:
    """Median seconds per call over about `budget` seconds, after two warm-up calls."""
    with torch.no_grad():
        run()
        run()
        wait_for(device)
        times: list[float] = []
        start = time.perf_counter()
        while time.perf_counter() - start < budget or len(times) < 5:
            before = time.perf_counter()
            run()
            wait_for(device)
            times.append(time.perf_counter() - before)
    return statistics.median(times)


def peak_bytes(run: Callable[[], Any], device: str = "cpu") -> int:
    """Largest sum of live allocations during one call, from the allocator's own events."""
    if device.startswith("cuda"):
        wait_for(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        with torch.no_grad():
            run()
        wait_for(device)
        return int(torch.cuda.max_memory_allocated(device) - before)
    with torch.no_grad():
        activity = [torch.profiler.ProfilerActivity.CPU]
        with torch.profiler.profile(activities=activity, profile_memory=True) as prof:
            run()
    live = peak = 0
    for event in prof.profiler.kineto_results.events():
        if event.name() == "[memory]":
            live += event.nbytes()
            peak = max(peak, live)
    return peak


def autocast_run(
    model: nn.Module, inputs: Sequence[Any], dtype: torch.dtype, device: str = "cpu"
) -> Callable[[], Any]:
    """torch's own autocast around the model."""
    kind = "cuda" if device.startswith("cuda") else "cpu"

    def run() -> Any:
        with torch.autocast(kind, dtype=dtype):
            return model(*inputs)

    return run


def _bind(module: torch.nn.Module, inputs: torch.Tensor) -> Callable[[], Any]:
    return lambda: module(inputs)


PARTS: dict[str, Callable[[], list[dict[str, Any]]]] = {
    "zoo": zoo_part,
    "analysis": analysis_part,
    "autocast": autocast_part,
    "holdout": lambda: violations("toy-transformer", 30, 100, 200),
    "holdout of gpt-like": lambda: violations("gpt-like", 8, 60, 60),
    "timing": timing_part,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--part", choices=sorted(PARTS))
    chosen = parser.parse_args().part
    for name, run in PARTS.items():
        if chosen in (None, name):
            start = time.perf_counter()
            rows = run()
            for row in rows:
                print(name, json.dumps(row))
            taken = round(time.perf_counter() - start, 1)
            update_result("precision", name, {"rows": rows, "seconds": taken})


if __name__ == "__main__":
    main()
