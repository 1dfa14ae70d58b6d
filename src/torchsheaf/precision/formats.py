"""Number formats: their grids, their ranges, and how a tensor is rounded onto them."""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Format:
    """A binary floating-point format: significands of `bits` bits, exponents `emin`..`emax`.

    Numbers are ±m·2^(e−bits+1) with integer m < 2^bits and emin ≤ e ≤ emax, subnormals included.
    storage: the torch dtype its numbers are kept in. carrier: the dtype a kernel computes in; where
    it differs from `storage`, arithmetic is emulated: operands and results are rounded onto the
    grid around a wider kernel. result: the format an operation's result has (`tf32` rounds operands
    only).
    """

    name: str
    bits: int
    emin: int
    emax: int
    largest: float
    storage: torch.dtype
    carrier: torch.dtype
    has_infinity: bool = True
    rounds_result: bool = True

    @property
    def unit(self) -> float:
        """Unit roundoff u = 2^−bits: |round(x) − x| ≤ u·|x| in the normal range."""
        return 2.0**-self.bits

    @property
    def spacing(self) -> float:
        """Distance between neighbouring subnormals, 2^(emin−bits+1)."""
        return 2.0 ** (self.emin - self.bits + 1)

    @property
    def overflow(self) -> float:
        """Round-to-nearest sends |x| at or above this past the largest number."""
        return self.largest + 2.0 ** (self.emax - self.bits)

    @property
    def bytes(self) -> int:
        """Bytes that one stored number takes."""
        return self.storage.itemsize

    @property
    def is_emulated(self) -> bool:
        """Whether arithmetic runs in a wider kernel between roundings onto this grid."""
        return self.storage != self.carrier or not self.rounds_result

    @property
    def result(self) -> "Format":
        """The format of a result computed in this format."""
        return self if self.rounds_result else FORMATS["fp32"]

    def holds(self, other: "Format") -> bool:
        """Whether every number of `other` is a number of this format: then a cast is exact."""
        return (
            other.bits <= self.bits
            and other.largest <= self.largest
            and other.spacing >= self.spacing
        )

    def round(self, x: Tensor) -> Tensor:
        """x rounded to nearest-even onto this grid, in the carrier dtype."""
        if not self.rounds_result:
            return round_tf32(x.to(torch.float32))
        if self.storage == self.carrier:
            return x.to(self.storage)
        # Casts to 8 bits saturate in some builds and give NaN in others: overflow is made visible.
        wide = x.to(self.carrier)
        rounded = wide.to(self.storage).to(self.carrier)
        beyond = wide.abs() >= self.overflow
        lost = torch.where(wide > 0, torch.inf, -torch.inf).to(self.carrier)
        return torch.where(beyond, lost if self.has_infinity else torch.nan, rounded)

    def ulp(self, x: Tensor) -> Tensor:
        """Spacing of the grid at x, elementwise: 2^(max(⌊log₂|x|⌋, emin) − bits + 1)."""
        floor = torch.clamp(binade(x), min=2.0**self.emin)
        return floor * 2.0 ** (1 - self.bits)


def binade(x: Tensor) -> Tensor:
    """2^⌊log₂|x|⌋ elementwise, 0 at 0; float32 and float64 only."""
    if x.dtype == torch.float64:
        return (x.view(torch.int64) & 0x7FF0000000000000).view(torch.float64)
    if x.dtype != torch.float32:
        x = x.to(torch.float32)
    return (x.contiguous().view(torch.int32) & 0x7F800000).view(torch.float32)


def round_tf32(x: Tensor) -> Tensor:
    """Round float32 to 11 significant bits, ties to even, by integer arithmetic on its pattern."""
    pattern = x.view(torch.int32)
    rounded = pattern + 0x0FFF + ((pattern >> 13) & 1)
    cut = (rounded & ~0x1FFF).view(torch.float32)
    return torch.where(torch.isfinite(x), cut, x)


_F = Format
FORMATS: dict[str, Format] = {
    f.name: f
    for f in (
        _F("fp64", 53, -1022, 1023, torch.finfo(torch.float64).max, torch.float64, torch.float64),
        _F("fp32", 24, -126, 127, torch.finfo(torch.float32).max, torch.float32, torch.float32),
        _F(
            "tf32",
            11,
            -126,
            127,
            float((2 - 2.0**-10) * 2.0**127),
            torch.float32,
            torch.float32,
            rounds_result=False,
        ),
        _F("bf16", 8, -126, 127, torch.finfo(torch.bfloat16).max, torch.bfloat16, torch.bfloat16),
        _F("fp16", 11, -14, 15, 65504.0, torch.float16, torch.float16),
        _F(
            "fp8_e4m3",
            4,
            -6,
            8,
            448.0,
            torch.float8_e4m3fn,
            torch.float32,
            has_infinity=False,
        ),
        _F("fp8_e5m2", 3, -14, 15, 57344.0, torch.float8_e5m2, torch.float32),
    )
}

ALIASES = {"float64": "fp64", "float32": "fp32", "bfloat16": "bf16", "float16": "fp16"}
ALIASES |= {"half": "fp16", "e4m3": "fp8_e4m3", "e5m2": "fp8_e5m2", "double": "fp64"}


def find_format(name: "str | Format | torch.dtype") -> Format:
    """The format of that name, alias or dtype; `ValueError` lists the names there are."""
    if isinstance(name, Format):
        return name
    key = str(name).removeprefix("torch.").lower()
    key = ALIASES.get(key, key)
    if key.startswith("float8_e4m3"):
        key = "fp8_e4m3"
    if key.startswith("float8_e5m2"):
        key = "fp8_e5m2"
    if key not in FORMATS:
        raise ValueError(f"format {name!r} is not known; write one of {', '.join(FORMATS)}")
    return FORMATS[key]


def format_of(dtype: torch.dtype) -> Format:
    """The format whose numbers a floating-point dtype stores."""
    return find_format(dtype)
