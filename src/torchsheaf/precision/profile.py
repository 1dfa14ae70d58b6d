"""What an operation and a cast cost: profiles are data files, shipped, written or measured."""

import functools
import json
import math
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import torch

from torchsheaf.file import write_text
from torchsheaf.network.aten import AtenCall
from torchsheaf.precision.arguments import refuse_device
from torchsheaf.precision.formats import FORMATS, Format
from torchsheaf.precision.operators import CONTRACTION, flops_of

_FIELDS = ("name", "unit", "source", "contraction", "elementwise", "byte", "call", "cast_call")


@dataclass(frozen=True)
class Profile:
    """Cost = flops·contraction[f] or elements·elementwise[f], + bytes·byte + call; casts likewise.

    A format that is absent from `contraction` or `elementwise` has no such kernel on that machine.
    """

    name: str
    unit: str
    source: str
    contraction: Mapping[str, float]
    elementwise: Mapping[str, float]
    byte: float
    call: float
    cast_call: float

    def supports(self, call: AtenCall, form: Format) -> bool:
        """Whether the machine has this kernel in this format."""
        table = self.contraction if call.packet in CONTRACTION else self.elementwise
        return form.name in table

    def operation(
        self, call: AtenCall, form: Format, shapes: Mapping[str, tuple[int, ...]],
        floating: set[str],
    ) -> float:  # fmt: skip
        """Cost of one call in one format, its floating operands read and its result written."""
        flops, elements = flops_of(call, shapes)
        work = flops * self.contraction.get(form.name, 0.0)
        work += elements * self.elementwise.get(form.name, 0.0)
        read = sum(math.prod(shapes[n]) for n in call.operands if n in shapes and n in floating)
        if call.packet == "embedding":
            read = math.prod(call.shape or ())
        moved = read * form.bytes + math.prod(call.shape or ()) * form.result.bytes
        return work + moved * self.byte + self.call

    def cast(self, source: Format, target: Format, size: int) -> float:
        """Cost of converting `size` numbers; reading float32 as tf32 is part of the kernel."""
        if source.storage == target.storage:
            return 0.0
        return size * (source.bytes + target.bytes) * self.byte + self.cast_call


def load_profile(profile: "str | Path | Mapping[str, Any] | Profile") -> Profile:
    """A shipped profile by name, a JSON file by path, or a mapping with the same fields.

    Raises `ValueError` naming the field that is missing or wrong.

    >>> stated = load_profile("stated")
    >>> stated.contraction["fp64"] == 2 * stated.contraction["fp32"]
    True
    """
    if isinstance(profile, Profile):
        return profile
    if isinstance(profile, Mapping):
        return _parse(dict(profile), "the mapping")
    shipped = resources.files("torchsheaf.precision") / "profiles" / f"{profile}.json"
    if "/" not in str(profile) and shipped.is_file():
        return _parse(json.loads(shipped.read_text(encoding="utf-8")), str(profile))
    if not isinstance(profile, str | Path):
        raise ValueError(f"profile is {profile!r}; write a file or one of {shipped_profiles()}")
    path = Path(profile)
    if not path.is_file():
        names = ", ".join(shipped_profiles())
        raise ValueError(f"profile {str(profile)!r} is no file and none of the shipped: {names}")
    try:
        data = dict(json.loads(path.read_text(encoding="utf-8")))
    except (ValueError, TypeError) as error:
        raise ValueError(f"profile {path} is no JSON object: {error}") from error
    return _parse(data, str(path))


def shipped_profiles() -> list[str]:
    """Names of the profiles that come with the package."""
    folder = resources.files("torchsheaf.precision") / "profiles"
    return sorted(f.name.removesuffix(".json") for f in folder.iterdir() if f.name.endswith("json"))


def _parse(data: dict[str, Any], where: str) -> Profile:
    for name in _FIELDS:
        if name not in data:
            raise ValueError(f"profile {where} lacks {name!r}; it needs {', '.join(_FIELDS)}")
    for table in ("contraction", "elementwise"):
        if not isinstance(data[table], Mapping):
            given = f"profile {where}, {table} is {data[table]!r}"
            raise ValueError(f"{given}; write a table of formats")
        for form, value in data[table].items():
            if form not in FORMATS:
                raise ValueError(f"profile {where}, {table}: {form!r} is no format")
            _check(value, f"profile {where}, {table}[{form!r}]")
    for name in ("byte", "call", "cast_call"):
        _check(data[name], f"profile {where}, {name}")
    return Profile(**{name: data[name] for name in _FIELDS})


def _check(value: Any, where: str) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < math.inf:
        raise ValueError(f"{where} is {value!r}; write a finite number ≥ 0")


def measure_profile(name: str = "here", device: str = "cpu", size: int = 384) -> Profile:
    """Time matrix products, `tanh` and casts on this machine in every native format.

    contraction[f] = seconds of a (size, size) product / 2·size³; elementwise[f] = seconds of a
    `tanh` less those of a copy, per element; byte = seconds of a copy per byte read or written;
    call and cast_call = seconds of an addition and a cast of 16 numbers. Each is a median of seven.

    Raises `ValueError` where nothing can be computed on the device. Cost: two seconds.

    >>> here = measure_profile(size=32)
    >>> load_profile(here) == here and here.contraction["fp32"] > 0
    True
    """
    refuse_device(device)
    generator = torch.Generator().manual_seed(0)
    a = torch.randn(size, size, generator=generator).to(device)
    v = torch.randn(1 << 20, generator=generator).to(device)
    contraction, elementwise = {}, {}
    for f in FORMATS.values():
        if f.is_emulated:
            continue
        x, y = a.to(f.storage), v.to(f.storage)
        contraction[f.name] = _seconds(functools.partial(torch.matmul, x, x), device) / (
            2.0 * size**3
        )
        spent = _seconds(functools.partial(torch.tanh, y), device)
        moved = _seconds(functools.partial(torch.clone, y), device)
        elementwise[f.name] = max(spent - moved, 0.0) / y.numel()
    byte = _seconds(lambda: v.clone(), device) / (8.0 * v.numel())
    small = v[:16]
    call = _seconds(lambda: small + small, device)
    cast = _seconds(lambda: small.to(torch.bfloat16), device)
    where = torch.cuda.get_device_name(device) if device.startswith("cuda") else "CPU"
    source = (
        f"measured on this machine: {where}, torch {torch.__version__}, "
        f"{torch.get_num_threads()} threads"
    )
    return Profile(name, "second", source, contraction, elementwise, byte, call, cast)


def _seconds(run: Callable[[], Any], device: str) -> float:
    """Median of seven, each long enough for the clock."""
    run()
    wait_for(device)
    times = []
    for _ in range(7):
        repeats, start = 0, time.perf_counter()
        while time.perf_counter() - start < 0.01:
            run()
            repeats += 1
        wait_for(device)
        times.append((time.perf_counter() - start) / repeats)
    return statistics.median(times)


def wait_for(device: str) -> None:
    """Until the device has done what was asked of it: a GPU is asked and not waited for."""
    if device.startswith("cuda"):
        torch.cuda.synchronize(device)


def write_profile(profile: Profile, path: str | Path) -> None:
    """Write a profile as a JSON data file, from which `load_profile` makes the same one.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     write_profile(load_profile("stated"), f"{folder}/p.json")
    ...     load_profile(f"{folder}/p.json") == load_profile("stated")
    True
    """
    write_text(path, json.dumps(asdict(profile), indent=1) + "\n")
