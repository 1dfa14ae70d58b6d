"""What is wrong with a network: dead units, signals that fade or blow up, saturation, bad rates."""

from collections.abc import Iterator

import torch
from torch import Tensor

from torchsheaf.arguments import positive_number
from torchsheaf.boundary import Problem, require_problem
from torchsheaf.cochain import Cochain, coordinates
from torchsheaf.diagnose.classes import are_classes
from torchsheaf.diagnose.findings import Finding, at_most, listed
from torchsheaf.diagnose.nudge import nudged_residual, output_error
from torchsheaf.diagnose.suspicion import suspicious_labels
from torchsheaf.network import Kind, Node, ScalarGate

DECAY = 1e5
"""Factor by which discord or signal may grow or shrink from one end of the network to the other."""
STUCK = 0.05
"""Share of samples that may be wrong with no pull behind the output edge."""
FLAT = 1e-3
"""Slope up to which a smooth unit counts as flat: tanh beyond ±4.1, sigmoid beyond ±6.9."""
SATURATING = (
    "tanh", "sigmoid", "gelu", "silu", "mish", "elu", "selu", "celu", "softplus", "log_sigmoid",
    "hardswish", "erf", "atan",
)  # fmt: skip
"""Smooth activations that have a flat end."""


@torch.no_grad()
def pathologies(
    problem: Problem, y: Tensor | None = None, *, dt: float | None = None, alpha: float = 1.0,
    top: float | None = None, decay: float = DECAY, output: str | None = None,
) -> tuple[Finding, ...]:  # fmt: skip
    """Known faults of networks, each with what was seen, its bound, a verdict and what to do.

    Always: dead units, decay of discord between the first and the last step with parameters, decay
    of the signal's spread; where there are any, steps with parameters that no output uses; and of
    values that are not finite, these alone. With a smooth output edge (softmax, sigmoid…):
    saturation. With class labels `y`: suspicious labels. With a step `dt` of explicit Euler and
    λ_max (`top`): its stability. The problem must hold the input and nothing else. `output` names
    the one that y belongs to, where the model has several.

    Raises ValueError naming an argument that does not fit, or a weight that is not finite.
    Cost: one forward and one adjoint sweep, and one more per class for the labels.
    Source: Bosca & Ghrist 2026, section 6.3; book, Props 13.7–13.9, corrected in docs/errata.md.

    >>> from torchsheaf.boundary import hold
    >>> from torchsheaf.sheaf import encode
    >>> net = torch.nn.Sequential(torch.nn.Linear(2, 8), torch.nn.ReLU(), torch.nn.Linear(8, 1))
    >>> with torch.no_grad():
    ...     net[0].bias[3] = -100.0
    >>> x = torch.randn(99, 2)
    >>> pathologies(hold(encode(net, x), x))[0].value >= 1
    True
    """
    require_problem(problem)
    decay = positive_number("decay", decay)
    rate = [] if dt is None else [_rate(dt, top, alpha)]
    name = problem.sheaf.output(output)
    at = problem.start("forward")
    if (broken := at.first_nonfinite()) is not None:
        return (overflow(at, broken), *rate)
    error = output_error(problem, name, at[name], y)
    pulled = nudged_residual(problem, at, name, error)
    found = [
        dead_units(problem, at),
        *without_effect(problem),
        *discord_decay(problem, name, pulled, decay),
    ]
    found += signal_decay(problem, at, decay)
    found += saturation(problem, at, name, error, y)
    if y is not None and are_classes(y, at[name]):
        found.append(suspicious_labels(problem, y, name))
    return (*found, *rate)


def _rate(dt: float, top: float | None, alpha: float) -> Finding:
    if top is None:
        raise ValueError("dt came without `top`; write top=float(spectra(problem).top.max())")
    return unstable_rate(dt, top, alpha)


def overflow(at: Cochain, vertex: str) -> Finding:
    """Samples whose forward pass leaves the numbers, and the first vertex where it does."""
    lost = ~coordinates(at[vertex]).isfinite().all(1)
    return at_most(
        "samples with values that are not finite", int(lost.sum()), 0, unit="samples",
        source="the forward pass itself",
        advice=f"The forward pass overflows, or divides by 0, first at {vertex}: scale the weights "
        "before it down, normalise, or compute in a wider type. Nothing else was looked at.",
    )  # fmt: skip


def without_effect(problem: Problem) -> list[Finding]:
    """Steps with parameters on no path to any output: wired wrong, or left over."""
    used = problem.sheaf.upstream(problem.sheaf.outputs)
    idle = [e.name for e in problem.sheaf.edges.values() if e.parameters and e.head not in used]
    if not idle:
        return []
    return [
        at_most(
            "steps without effect on any output", len(idle), 0, unit="steps",
            source="no path leads from them to an output",
            advice=f"{listed(idle, 6)}: computed, and used by nothing; "
            "their parameters never learn. Wire the result in, or remove them.",
        )
    ]  # fmt: skip


def dead_units(problem: Problem, at: Cochain) -> Finding:
    """Units whose gate is flat on every sample: their weight edge's row of λ is zero for all.

    The zero row is on the *weight* edge: nothing pulls z_j. The gate's own edge keeps the residual
    (Wᵀλ)_j, which the book has the other way round. A channel counts as one unit, and so does a
    feature of all tokens (the last axis, after a linear layer). Smooth units inside the network
    (tanh, GELU…) are flat where their slope is at most `FLAT`.
    """
    dead: list[str] = []
    linear = {n.name for n in problem.sheaf.network.nodes if n.op.startswith("aten.linear")}
    for node in problem.sheaf.network.nodes:
        for flat in _flat(problem, node, at):
            if flat.ndim < 2:
                continue
            if linear.issuperset(node.parents):
                flat = flat.movedim(-1, 1)
            units = flat.reshape(flat.shape[0], flat.shape[1], -1).all(2).all(0)
            dead += [f"{node.name}[{j}]" for j in units.nonzero().flatten().tolist()]
    bound = f"{3 / problem.batch:.1%}" if problem.batch >= 3 else "an unknown share"
    return at_most(
        "dead units",
        len(dead),
        0,
        unit="units",
        source="a gate that is flat on every sample passes nothing back: λ is 0 on its weight row",
        advice=(
            f"No unit is flat on all {problem.batch} samples (slope 0; of smooth units such as "
            f"GELU and tanh, at most {FLAT:g})."
            if not dead
            else f"Flat on all {problem.batch} samples (so, with 95% confidence, sloped on fewer "
            f"than {bound} of such inputs): {listed(dead, 6)}. They pass on a constant, and "
            "learn nothing. Lower the learning rate, start their biases where the gate has a slope "
            "(ReLU: at 0 or above; tanh, sigmoid: near 0, with smaller weights), use a leaky gate, "
            "or remove them."
        ),
    )


def _flat(problem: Problem, node: Node, at: Cochain) -> Iterator[Tensor]:
    """Where the coordinatewise units of a node are flat, per operation, in the operand's shape."""
    network = problem.sheaf.network
    if node.gates:
        for gate, z in network.gate_operands(node, at).values():
            if isinstance(gate, ScalarGate) and 0.0 in gate.slopes:
                yield gate.select(z) == 0
    if node.operation in SATURATING and node.name not in problem.sheaf.outputs:
        ones = {p: torch.ones_like(at[p]) for p in node.parents}
        yield network.linearise(node, at, {}).push(ones).abs() <= FLAT


def discord_decay(problem: Problem, name: str, pulled: Cochain, decay: float) -> list[Finding]:
    """d at the first step with parameters over d at the last one, of those that output uses."""
    used = problem.sheaf.upstream([name])
    edges = [e for e in problem.sheaf.edges.values() if e.parameters and e.head in used]
    if len(edges) < 2:
        return []
    size = {
        e.name: float(coordinates(pulled[e.name]).square().sum(1).mean())
        for e in (edges[0], edges[-1])
    }
    first, last = edges[0].name, edges[-1].name
    ratio = size[first] / size[last] if size[last] > 0 else float("nan")
    if size[last] == 0:  # nothing pulls: the targets are met
        return []
    fading = (1 / ratio) if ratio > 0 else float("inf")
    between = f"from {last} back to {first}"
    return [
        at_most(
            f"vanishing discord {between}", fading, decay, unit="×",
            source="d_e at the first weight edge is the back-propagated error squared (T5)",
            advice=_either(
                fading <= decay,
                "The first layers feel the target.",
                (
                    f"No discord arrives on its way {between}: the first layers do not learn"
                    if fading == float("inf")
                    else f"Discord falls by a factor {fading:.1e} on its way {between}: the first "
                    "layers hardly learn"
                )
                + ". Scale the weights up (He initialisation), add residual joins or "
                "normalisation, or train with the edge rule, which does not rely on it.",
            ),
        ),
        at_most(
            f"exploding discord {between}", ratio, decay, unit="×",
            source="d_e at the first weight edge is the back-propagated error squared (T5)",
            advice=_either(
                ratio <= decay,
                "The first layers are not swamped.",
                f"Discord grows by a factor {ratio:.1e} on its way {between}: steps at the "
                "beginning overshoot. Scale the weights down, clip, or normalise.",
            ),
        ),
    ]  # fmt: skip


def signal_decay(problem: Problem, at: Cochain, decay: float) -> list[Finding]:
    """Spread over samples, per coordinate, of what the steps with parameters make of the input."""
    like = problem.like
    reference = float(coordinates(like.to(torch.float64)).var(0, correction=0).mean())
    edges = [e for e in problem.sheaf.edges.values() if e.parameters]
    if problem.batch < 2 or reference == 0 or not edges:
        return []
    spread = {
        e.name: float(coordinates(at[e.name]).var(0, correction=0).mean()) / reference
        for e in edges
    }
    low, high = min(spread, key=spread.__getitem__), max(spread, key=spread.__getitem__)
    fading = 1 / spread[low] if spread[low] > 0 else float("inf")
    return [
        at_most(
            "vanishing signal", fading, decay, unit="×",
            source="variance over samples per coordinate, relative to the input's",
            advice=_either(
                fading <= decay,
                "What distinguishes the samples reaches every step.",
                (
                    f"At {low} all samples have the same value"
                    if fading == float("inf")
                    else f"At {low} the samples differ {fading:.1e} times less than at the input "
                    "(variance per coordinate)"
                )
                + ": scale its weights or those before it up, or normalise.",
            ),
        ),
        at_most(
            "exploding signal", spread[high], decay, unit="×",
            source="variance over samples per coordinate, relative to the input's",
            advice=_either(
                spread[high] <= decay,
                "No step blows the signal up.",
                f"At {high} the samples differ {spread[high]:.1e} times more than at the input: "
                "scale the weights down, or normalise.",
            ),
        ),
    ]  # fmt: skip


def saturation(
    problem: Problem, at: Cochain, name: str, error: Tensor, y: Tensor | None
) -> list[Finding]:
    """Samples that are wrong while the smooth output edge passes less than 1% of the error on."""
    edge = problem.sheaf.edges[name]
    if edge.kind is not Kind.SMOOTH or y is None:
        return []
    passed = problem.sheaf.linearise(at)[name].pull(error)
    through = torch.stack([coordinates(t).square().sum(1) for t in passed.values()]).sum(0).sqrt()
    size = coordinates(error).norm(dim=1)
    stuck = (size > 0.5) & (through <= 0.01 * size)
    share = float(stuck.double().mean())
    return [
        at_most(
            f"samples stuck behind {name}", share, STUCK,
            source="local derivative of the output edge against the error it should pass on",
            advice=_either(
                share <= STUCK,
                "Wrong answers still pull on the network.",
                f"{int(stuck.sum())} of {problem.batch} samples are wrong and {edge.operation} is "
                "flat there, so that squared error teaches nothing. Train on the values before it "
                "with cross-entropy, and scale the last layer's weights down.",
            ),
        )
    ]  # fmt: skip


def unstable_rate(dt: float, top: float, alpha: float = 1.0) -> Finding:
    """Explicit Euler on the stalks is stable iff α dt λ_max ≤ 2; all three are positive."""
    dt, top = positive_number("dt", dt), positive_number("top", top)
    alpha = positive_number("alpha", alpha)
    limit = 2 / (alpha * top)
    return at_most(
        "step of explicit Euler",
        dt,
        limit,
        source="stability of explicit Euler: dt < 2/(α λ_max), for the largest sample",
        advice=_either(
            dt <= limit,
            f"The step is {dt / limit:.0%} of the largest stable one.",
            f"Above 2/(α λ_max) = {limit:.3g} the fastest mode grows without bound. Lower dt, or "
            'use method="exact", which has no step to choose.',
        ),
    )


def _either(fine: bool, good: str, bad: str) -> str:
    return good if fine else bad
