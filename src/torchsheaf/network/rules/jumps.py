"""Operations that jump, and so have no rule: what to write instead."""

_STEPS = (
    "its value jumps, so that no linear map says how it follows its operand; write a continuous "
    "stand-in (hardtanh or tanh for a sign, softshrink for hardshrink, the value itself for a "
    "rounding)"
)

JUMPS: dict[str, str] = {
    f"aten.{name}": _STEPS
    for name in (
        "sign.default", "sgn.default", "round.default", "round.decimals", "floor.default",
        "ceil.default", "trunc.default", "fix.default", "frac.default", "fmod.Scalar",
        "fmod.Tensor", "remainder.Scalar", "remainder.Tensor", "heaviside.default",
        "hardshrink.default", "copysign.Tensor", "floor_divide.default", "div.Tensor_mode",
        "div.Scalar_mode", "angle.default",
    )
}  # fmt: skip
"""By operation: why a model that applies it to activations is refused."""


def no_rule(operation: str) -> str:
    """Why an operation without a rule cannot be read."""
    return JUMPS.get(operation, "no rule for this operation; see torchsheaf.register_rule")


_CHOICES = (
    "cannot carry a tangent: what is chosen by it jumps. Pass the choice as an input (indices, "
    "masks), or use a weighting in its place (softmax, sigmoid)"
)

CHOSEN = f"the indices of a maximum or of an order {_CHOICES}"
"""Why what a maximum or a sort returns beside its values cannot be read."""


def no_tangent(dtype: object) -> str:
    """Why a value of a type that is no real number cannot be read."""
    return f"an intermediate value of type {dtype}, computed from activations, {_CHOICES}"
