"""Newton's equilibria against brute force, closed forms, dense programs and block elimination."""

import pytest
import torch

import torchsheaf as ts
from tests.reference.brute_force import brute_force
from tests.reference.frozen import frozen_at
from tests.reference.networks import linear_mlp, paper_network, randn, relu_mlp
from torchsheaf.harmonic.equilibria import Equilibria

SHAPES = ([2, 4, 1], [2, 3, 3, 1], [2, 2, 2, 2, 1], [3, 5, 2])


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("weight", [float("inf"), 0.8])
def test_best_of_sixteen_starts_is_the_global_minimum(seed, weight):
    widths = SHAPES[seed % 4]
    net, x = relu_mlp(widths, seed), randn(seed + 1000, 1, widths[0])
    y = 2 * randn(seed + 2000, 1, widths[-1])
    least = brute_force(net, x[0], y[0], weight).least
    problem = ts.hold(ts.encode(net, x), x).pin(ts.Pin("output", y, weight=weight))
    source = torch.Generator().manual_seed(seed)
    found = ts.harmonic_extension(problem, starts=16, generator=source)
    assert float(found.energy) == pytest.approx(least, rel=1e-7)
    assert float(found.equilibria.energies.min()) >= least * (1 - 1e-9)
    assert len(found.equilibria.distinct(0)) == int(found.equilibria.count[0])


def test_the_best_is_the_lowest_that_arrived_and_the_lowest_where_none_did():
    energies = torch.tensor([[1.0, 0.5, 3.0], [2.0, 3.0, 2.0]])
    arrived = torch.tensor([[True, False, False], [True, True, False]])
    cochains = tuple(ts.Cochain({"a": torch.full((3, 1), float(i))}) for i in range(2))
    found = Equilibria(energies, arrived, torch.zeros(2, 3), cochains, ("zeros", "forward"))
    assert found.best()["a"].flatten().tolist() == [0, 1, 1]


def test_every_start_ends_in_one_of_the_equilibria_that_exist():
    net, x, y = relu_mlp([2, 3, 3, 1], 5), randn(1, 1, 2), 3 * randn(2, 1, 1)
    known = brute_force(net, x[0], y[0]).energies
    problem = ts.hold(ts.encode(net, x), x).pin(ts.Pin("output", y))
    found = ts.harmonic_extension(problem, starts=12).equilibria
    for energy, _ in found.distinct(0):
        assert float((known - energy).abs().min()) <= 1e-9 * (1 + energy)


def test_soft_pin_of_a_whole_hidden_layer_divides_by_one_plus_gamma():
    """Paper §5.1, bias 0: z = z_fwd/(1+γ), and the output with it."""
    net, x = paper_network([2, 4, 1], 42), torch.tensor([[1.0, 0.5]], dtype=torch.float64)
    sheaf = ts.encode(net, x)
    forward = sheaf.forward(x)
    for gamma in (0.1, 1.0, 10.0, 100.0):
        problem = ts.hold(sheaf, x).pin(ts.Pin("0", 0.0, weight=gamma))
        found = ts.harmonic_extension(problem)
        torch.testing.assert_close(found.cochain["0"], forward["0"] / (1 + gamma))
        torch.testing.assert_close(found.output, forward["2"] / (1 + gamma))


def test_a_soft_pin_tends_to_the_hard_one_like_one_over_gamma():
    net, x, y = relu_mlp([2, 6, 6, 1], 0), randn(1, 5, 2), randn(2, 5, 1)
    base = ts.hold(ts.encode(net, x), x).pin(ts.Pin("0", 0.3, where=[1, 4]))
    hard = ts.harmonic_extension(base.pin(ts.Pin("output", y)))
    gaps = []
    for gamma in (1e2, 1e3, 1e4):
        soft = base.pin(ts.Pin("output", y, weight=gamma))
        found = ts.harmonic_extension(soft, start=hard.cochain)
        gaps.append(float((found.energy - hard.energy).abs().max()))
    assert gaps[0] / gaps[1] == pytest.approx(10, rel=0.1)
    assert gaps[1] / gaps[2] == pytest.approx(10, rel=0.1)


@pytest.mark.parametrize("vertex", ["0", "1", "2", "3"])
def test_hidden_hard_pins_solve_the_quadratic_program_of_their_pattern(vertex):
    """Freeze the equilibrium's pattern: the dense KKT solution there is the equilibrium itself."""
    net, x, y = relu_mlp([3, 5, 4, 2], 1), randn(1, 6, 3), randn(2, 6, 2)
    sheaf = ts.encode(net, x)
    problem = ts.hold(sheaf, x).pin(ts.Pin(vertex, 0.4, where=[0, 2]), ts.Pin("output", y))
    found = ts.harmonic_extension(problem)
    pattern = sheaf.pattern(found.cochain)
    delta = problem.coboundary(found.cochain, pattern).to_dense()
    flat, free = problem.free.flatten(found.cochain), problem.free
    sliding = torch.cat(
        [
            (found.gates.states[next(o for o, e in pattern.edges.items() if e == g)] == 2)
            for g in ("1", "3")
        ],
        1,
    )
    columns = torch.zeros(6, free.dim, dtype=torch.bool)
    for z, start in (("0", 0), ("2", 5)):
        width = sheaf.vertices[z].dim
        kept = ~problem.held[z] if z in problem.held else torch.ones(width, dtype=torch.bool)
        columns[:, free.slices[z]] = sliding[:, start : start + width][:, kept]
    residual = problem.edge_space.flatten(problem.residual(found.cochain))
    for sample in range(6):
        moving = ~columns[sample]
        a = delta[sample][:, moving]
        b = a @ flat[sample, moving] - residual[sample]
        dense = torch.linalg.lstsq(a, b[:, None]).solution[:, 0]
        torch.testing.assert_close(dense, flat[sample, moving], atol=1e-7, rtol=1e-7)


def test_linear_networks_take_one_step_to_the_unique_minimum():
    net, x, y = linear_mlp([3, 4, 4, 2], 0), randn(1, 7, 3), randn(2, 7, 2)
    problem = ts.hold(ts.encode(net, x), x).pin(ts.Pin("output", y))
    found = ts.harmonic_extension(problem)
    laplacian = problem.laplacian(found.cochain)
    rhs = laplacian.apply(problem.free.project(found.cochain)) - problem.gradient(found.cochain)
    dense = torch.linalg.solve(laplacian.to_dense(), problem.free.flatten(rhs))
    torch.testing.assert_close(problem.free.flatten(found.cochain), dense, atol=1e-8, rtol=1e-8)


def test_free_inputs_are_recovered_when_the_output_can_be_had():
    """y = f(x*) is reachable, so the least energy over (x, hidden) is 0."""
    net, x = relu_mlp([4, 6, 6, 2], 3), randn(1, 5, 4)
    sheaf = ts.encode(net, x)
    y = sheaf.forward(x)["output" if "output" in sheaf.vertices else sheaf.outputs[0]]
    start = sheaf.forward(x + 0.01 * randn(2, 5, 4))
    problem = ts.hold(sheaf, x, where=[0, 1]).pin(ts.Pin("output", y))
    found = ts.harmonic_extension(problem, start=start, tol=1e-9)
    assert float(found.energy.max()) <= 1e-12
    torch.testing.assert_close(found.cochain["input"][:, :2], x[:, :2])
    torch.testing.assert_close(sheaf.forward(found.cochain["input"])[sheaf.outputs[0]], y)


def test_block_elimination_gives_the_same_newton_step():
    """Block-Thomas on the tridiagonal Hessian in a, densely, against conjugate gradients."""
    from torchsheaf.harmonic.frozen_system import newton_direction

    net, x, y = relu_mlp([2, 5, 4, 3, 1], 7), randn(1, 3, 2), randn(2, 3, 1)
    problem = ts.hold(ts.encode(net, x), x).pin(ts.Pin("output", y))
    start = problem.start("random", torch.Generator().manual_seed(3))
    _, c, _, here, system = frozen_at(problem, start)
    model = system.branch
    with torch.no_grad():
        g = system.reverse(here.on_variables, here.on_values)
        found = newton_direction(system, g, torch.full((3,), 1e-13, dtype=c.dtype))
        plain = system.reverse(here.on_variables, here.on_values, substitute=False, scaled=False)
        weights = [p.detach() for n, p in net.named_parameters() if n.endswith("weight")]
        rows = [slice(0, 5), slice(5, 9), slice(9, 12)]
        for sample in range(3):
            kappa = model.scale[sample].reciprocal().square()
            slope, omega = model.slope[sample], model.omega[sample]
            diagonal, above = [], []
            for i, r in enumerate(rows):
                block = torch.diag(kappa[r])
                if i < 2:
                    n, w = rows[i + 1], weights[i + 1]
                    stiff = kappa[n] * slope[n].square() + omega[n]
                    block = block + w.mT @ torch.diag(stiff) @ w
                    above.append(-w.mT @ torch.diag(kappa[n] * slope[n]))
                else:
                    block = block + weights[3].mT @ weights[3]
                diagonal.append(block)
            step = block_thomas(diagonal, above, [-plain[sample, r] for r in rows])
            torch.testing.assert_close(torch.cat(step), found.dc[sample], atol=1e-9, rtol=1e-7)


def block_thomas(diagonal, above, right):
    """Solve a symmetric block tridiagonal system by elimination from the top."""
    d, r = [diagonal[0]], [right[0]]
    for i in range(1, len(diagonal)):
        factor = above[i - 1].mT @ torch.linalg.inv(d[-1])
        d.append(diagonal[i] - factor @ above[i - 1])
        r.append(right[i] - factor @ r[-1])
    x = [torch.linalg.solve(d[-1], r[-1])]
    for i in reversed(range(len(diagonal) - 1)):
        x.insert(0, torch.linalg.solve(d[i], r[i] - above[i] @ x[0]))
    return x


@pytest.mark.parametrize("start", ["auto", "forward", "zeros"])
def test_no_start_is_tried_twice(start):
    """On a smooth net "auto" is the forward pass."""
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.Tanh(), torch.nn.Linear(3, 1))
    x = randn(1, 4, 2)
    held = ts.hold(ts.encode(net.double(), x), x).pin(ts.Pin("output", 1.0))
    found = ts.harmonic_extension(held, start=start, starts=4).equilibria
    assert sorted(found.starts) == ["forward", "random 0", "random 1", "zeros"]


def test_several_starts_with_everything_held_are_one_equilibrium():
    net, x = relu_mlp([2, 3, 1], 0), randn(1, 4, 2)
    problem = ts.hold(ts.encode(net, x), x)
    held = problem.pin(*(ts.Pin(vertex, 1.0) for vertex in problem.sheaf.edges))
    found = ts.harmonic_extension(held, starts=3)
    assert found.equilibria.count.tolist() == [1] * 4
    assert torch.equal(found.energy, held.energy(found.cochain))
