"""Complex numbers on the way from real values to real values; no vertex holds them.

As maps of real and imaginary parts all of these are linear or smooth, and torch's forward and
reverse modes are adjoint to each other for ⟨u, v⟩ = Re Σ u v̄.
"""

from torchsheaf.network.rules.rule import Kind, Rule

_FOURIER = tuple(f"fft_{way}fft{axes}" for way in ("", "i", "r", "ir") for axes in ("", "2", "n"))

COMPLEX: dict[str, Rule] = {
    **{
        f"aten.{name}.default": Rule(Kind.RESHAPE)
        for name in (
            "view_as_complex", "view_as_real", "real", "imag", "_conj", "conj", "conj_physical",
            "_conj_physical", "resolve_conj", "resolve_neg", "_neg_view",
        )
    },
    **{f"aten.{name}.default": Rule(Kind.AFFINE) for name in _FOURIER},
    "aten.fft_fftshift.default": Rule(Kind.RESHAPE),
    "aten.fft_ifftshift.default": Rule(Kind.RESHAPE),
    "aten.stft.default": Rule(Kind.AFFINE),
    "aten.complex.default": Rule(Kind.AFFINE, additive=True),
}  # fmt: skip

OF_COMPLEX: dict[str, Rule] = {"aten.abs.default": Rule(Kind.SMOOTH)}
"""Operations that are something else for a complex operand than for a real one."""
