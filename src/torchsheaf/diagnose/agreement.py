"""Does the forward pass solve the sheaf's problem, and is it the only solution?"""

import torch
from torch import Tensor

from torchsheaf.arguments import require_generator, tolerance_of, whole_number
from torchsheaf.boundary import Problem, require_problem
from torchsheaf.cochain import Cochain
from torchsheaf.diagnose.findings import Finding, above, at_most
from torchsheaf.harmonic import Extension, Spectrum, harmonic_extension, spectrum

ASSEMBLE_UP_TO = 400
"""Free coordinates up to which δ is assembled to compute its determinant."""
SAMPLES = 4
"""Samples whose δ is assembled."""
SECOND_ROUTE = 40_000
"""Numbers (samples × free coordinates) relaxed from random values for the second route."""


@torch.no_grad()
def agreement(
    extension: Extension,
    expected: Tensor,
    *,
    gap: Spectrum | None = None,
    assemble_up_to: int = ASSEMBLE_UP_TO,
    generator: torch.Generator | None = None,
    output: str | None = None,
) -> tuple[Finding, ...]:
    """Check that the forward pass is the harmonic extension, and the only one.

    `extension` must hold the input and nothing else; `expected` is what `model(x)` returns, and
    where that is several tensors the one of the vertex `output`. The findings: the largest
    difference to the model relative to its largest output; the same by a second route that never
    runs the network forwards (Newton's method from random values, on a few samples, where that
    solver takes the network and none of its maps jumps); the energy; det δ = 1 (assembled for up to
    `assemble_up_to` free coordinates, otherwise read off the triangular structure, and the finding
    says so); the smallest eigenvalue of L = δᵀδ. `gap` passes eigenvalues that are already known;
    `generator` makes the random values.

    Raises ValueError when more than the input is held, shapes differ, or weights are not finite.
    Cost: one eigenvalue by Lanczos per sample; O(n³) for each assembled δ.
    Source: Bosca & Ghrist 2026, Lemma 1 and Prop. 1; docs/theory.md, T1 and T2.

    >>> from torchsheaf.boundary import hold
    >>> from torchsheaf.harmonic import harmonic_extension
    >>> from torchsheaf.sheaf import encode
    >>> net = torch.nn.Sequential(torch.nn.Linear(2, 8), torch.nn.ReLU(), torch.nn.Linear(8, 1))
    >>> x = torch.randn(16, 2)
    >>> forward = harmonic_extension(hold(encode(net, x), x))
    >>> all(finding.holds for finding in agreement(forward, net(x)))
    True
    """
    if not isinstance(extension, Extension):
        raise TypeError(f"agreement takes an Extension; got {type(extension).__name__}")
    if not isinstance(expected, Tensor):
        raise TypeError(f"expected is a {type(expected).__name__}; pass what model(x) returns")
    require_generator(generator)
    problem = extension.problem
    if not problem.holds_input_only:
        raise ValueError("agreement needs an extension with the input held and nothing else")
    name = problem.sheaf.output(output)
    found = extension.cochain[name]
    if expected.shape != found.shape:
        raise ValueError(
            f"expected has shape {tuple(expected.shape)}; the output has {tuple(found.shape)}"
        )
    if not isinstance(gap, Spectrum | None):
        raise TypeError(f"gap is a {type(gap).__name__}; pass what spectrum(problem) returns")
    assemble_up_to = whole_number("assemble_up_to", assemble_up_to, 0)
    require_problem(problem)
    second = _second_route(problem, name, expected, generator or torch.Generator().manual_seed(0))
    return (
        _difference(found, expected),
        *([second] if second is not None else []),
        _energy(extension),
        _determinant(problem, extension.cochain, assemble_up_to),
        _definiteness(problem, gap),
    )


def relative_tolerance(dtype: torch.dtype) -> float:
    """What rounding may cost: 1e-12 in float64, 1e-5 in float32, 8 ε in shorter types."""
    rounding = 8 * torch.finfo(dtype).eps
    return max(rounding, tolerance_of(dtype, float64=1e-12, float32=1e-5))


def _difference(found: Tensor, expected: Tensor) -> Finding:
    scale = float(expected.abs().max().clamp_min(torch.finfo(expected.dtype).tiny))
    return at_most(
        "largest difference to the model's output, relative",
        float((found - expected).abs().max()) / scale,
        relative_tolerance(expected.dtype),
        source="Prop. 1: the forward pass is the harmonic extension",
        advice="Solving all local rules together gives what running the model gives.",
    )


def _second_route(
    problem: Problem, name: str, expected: Tensor, generator: torch.Generator
) -> Finding | None:
    count = min(8, SECOND_ROUTE // problem.free.dim)
    network = problem.sheaf.network
    if count < 1 or network.fixed_batch is not None or network.jump:
        return None  # at a jump a descent may stop where no derivative vanishes: T2 excludes it
    some = problem.samples(torch.arange(min(count, problem.batch)))
    try:
        found = harmonic_extension(
            some, solver="newton", start=some.start("random", generator), throw=False,
            max_passes=2000,
        )  # fmt: skip
    except ValueError:
        return None
    wanted = expected[: some.batch]
    scale = float(wanted.abs().max().clamp_min(torch.finfo(expected.dtype).tiny))
    return at_most(
        f"the same from random values by Newton's method, {some.batch} samples, relative",
        float((found.cochain[name] - wanted).abs().max()) / scale,
        tolerance_of(expected.dtype, float64=1e-6, float32=1e-2),
        source="T2: the energy has no critical point but the forward pass",
        advice="A solver that only lowers the disagreement, starting anywhere, finds the output.",
    )


def _energy(extension: Extension) -> Finding:
    c = extension.cochain
    scale = max(1.0, max(float(t.abs().max()) for t in c.values()))
    return at_most(
        "largest energy of a sample",
        float(extension.energy.max()),
        (relative_tolerance(c.dtype) * scale) ** 2,
        source="Prop. 1: the extension has no disagreement",
        advice="No edge disagrees: every rule holds exactly, up to rounding.",
    )


def _determinant(problem: Problem, at: Cochain, limit: int) -> Finding:
    if problem.free.dim > limit:
        return at_most(
            "edges that break the triangular order (none: det δ = 1)",
            _out_of_order(problem),
            0,
            source="Lemma 1: det δ = 1 for every pattern",
            advice=(
                f"With {problem.free.dim:,} free coordinates δ is not assembled; every edge has "
                "the identity at its head and reads only earlier vertices, so det δ = 1 exactly."
            ),
        )
    fixed = problem.sheaf.network.fixed_batch is not None
    some = problem if fixed else problem.samples(torch.arange(min(SAMPLES, problem.batch)))
    dense = some.coboundary(at.samples(slice(0, some.batch))).to_dense().double()
    return at_most(
        f"|det δ − 1|, assembled for {dense.shape[0]} samples",
        float((torch.linalg.det(dense) - 1).abs().max()),
        tolerance_of(at.dtype, float64=1e-10, float32=1e-5),
        source="Lemma 1: det δ = 1 for every pattern",
        advice="There is exactly one assignment without disagreement, whatever the weights.",
    )


def _out_of_order(problem: Problem) -> int:
    """Edges that read a vertex which does not stand before their head."""
    order = {name: i for i, name in enumerate(problem.sheaf.vertices)}
    edges = problem.sheaf.edges.values()
    return sum(any(order[p] >= order[e.head] for p in e.parents) for e in edges)


def _definiteness(problem: Problem, gap: Spectrum | None) -> Finding:
    gap = spectrum(problem) if gap is None else gap
    return above(
        "smallest eigenvalue of the Laplacian",
        float(gap.values.min()),
        0.0,
        source="T1: L is positive definite for every pattern and every weight",
        advice=(
            "Positive: the energy has one minimum per activation pattern. "
            "Small: the network settles slowly after a disturbance."
        ),
    )
