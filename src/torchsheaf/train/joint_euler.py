"""The paper's training: stalks and weights flow together, by explicit Euler steps."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from torchsheaf.arguments import kind, positive_number, whole_number
from torchsheaf.cochain import is_finite
from torchsheaf.draws import standard_normal
from torchsheaf.network.placement import require_beside
from torchsheaf.outcome import ConvergenceError, Outcome
from torchsheaf.train.batches import tensors
from torchsheaf.train.losses import Loss, SquaredLoss, loss_named


@dataclass
class JointState:
    """Stalks and weights of R runs on N samples, changed in place.

    Stalks are laid out as in the paper, one column per sample: `z[l]` (R, n_l, N); `a[l]`
    (R, n_{l−1} + 1, N), the extended stalk ā = (a; 1) that enters weight edge l, so a[0] is the
    held input; `w[l]` (R, n_l, n_{l−1} + 1) is [W | b]; `y` (R, n_out, N).
    """

    z: list[Tensor]
    a: list[Tensor]
    w: list[Tensor]
    y: Tensor
    steps: int = 0

    def forward(self, x: Tensor) -> Tensor:
        """The plain forward pass of every run, (R, M, n_out), for x (M, n_0)."""
        h = _with_ones(x.mT.expand(self.w[0].shape[0], *x.mT.shape))
        for w in self.w[:-1]:
            h = _with_ones(torch.bmm(w, h).relu_())
        return torch.bmm(self.w[-1], h).mT

    def write_to(self, models: Sequence[nn.Sequential]) -> None:
        """Copy the weights back into the modules that they came from."""
        with torch.no_grad():
            for r, model in enumerate(models):
                for w, layer in zip(self.w, _layers(model), strict=True):
                    layer.weight.copy_(w[r, :, :-1])
                    layer.bias.copy_(w[r, :, -1])


@dataclass(frozen=True)
class JointEuler:
    """Explicit Euler on E(c, θ) in stalks (rate α) and weights (rate β) at once.

    With r_l = W_l a_{l−1} + b_l − z_l and R_l = 1[z_l ≥ 0], everything on the right from the old
    state:
        z_l     += α dt (r_l − R_l (z_l − a_l)),        l ≤ k
        z_{k+1} += α dt (r_{k+1} − ∂Φ/∂z)
        a_l     += α dt (−(a_l − R_l z_l) − W_{l+1}ᵀ r_{l+1})
        W_l     −= β dt Σ_m r_l a_{l−1}ᵀ,   b_l −= β dt Σ_m r_l
    The sums run over the whole batch; β defaults to 1/N. Every sample keeps its own stalks and the
    weight edges are shared: the paper's batch sheaf (Fig. 5). Several runs of one architecture and
    one data set (R initialisations, R values of β) go side by side in one batch.

    For reproduction: explicit Euler chatters on sliding neurons and the stalks lag behind the
    weights when β is large; rule "equilibrium" has neither fault. Cost: about a forward and a
    reverse pass per step. Source: Bosca & Ghrist 2026, section 5.2; docs/learning.md.
    """

    loss: str | Loss = "l2"
    alpha: float = 1.0
    dt: float = 0.005
    beta: float | Tensor | None = None

    def __post_init__(self) -> None:
        for name in ("alpha", "dt"):
            positive_number(name, getattr(self, name))
        if not isinstance(self.beta, Tensor | None):
            positive_number("beta", self.beta, "a positive number, a tensor (runs,) or None")
        loss_named(self.loss)

    @torch.no_grad()
    def start(
        self,
        models: nn.Sequential | Sequence[nn.Sequential],
        x: Tensor,
        y: Tensor,
        *,
        stalks: str = "random",
        generators: Sequence[torch.Generator] | None = None,
    ) -> JointState:
        """The first state: weights from the models, stalks "random" (standard normal) or "forward".

        Each model is `nn.Sequential` of Linear, ReLU, …, Linear, all of the same widths. One
        generator per run draws its stalks.

        Raises TypeError or ValueError for another architecture, an input that does not fit it,
        wrong targets or a wrong number of generators.
        """
        group = [models] if isinstance(models, nn.Sequential) else models
        if not isinstance(group, Sequence) or not group:
            raise TypeError(f"models is {kind(models)}; write one nn.Sequential or a list of them")
        (x, *others), y = tensors(x, y)
        if others:
            raise ValueError(f"{len(others) + 1} inputs came; joint flow is for one tensor x")
        layers = [_layers(m) for m in group]
        if len({tuple(tuple(p.weight.shape) for p in one) for one in layers}) != 1:
            raise ValueError("the models have different widths; runs side by side need equal ones")
        _check_input(x, layers[0][0].weight)
        if not isinstance(generators, Sequence | None):
            raise TypeError(f"generators is {kind(generators)}; write a list, one for each run")
        if generators is not None and len(generators) != len(group):
            raise ValueError(f"{len(generators)} generators came for {len(group)} models")
        runs, n = len(group), x.shape[0]
        w = [
            torch.stack([torch.cat([p.weight, p.bias[:, None]], 1) for p in level])
            for level in zip(*layers, strict=True)
        ]
        loss = loss_named(self.loss)
        target = loss.target(x.new_empty(n, w[-1].shape[1]), y)
        if target.shape != (n, w[-1].shape[1]):
            raise ValueError(
                f"targets have shape {tuple(target.shape)}; joint flow holds one number per output "
                f"beside the stalks, {(n, w[-1].shape[1])}"
            )
        target = target.mT
        inputs = _with_ones(x.mT.expand(runs, *x.mT.shape))
        state = JointState([], [inputs], w, target.expand(runs, *target.shape).contiguous())
        if stalks == "forward":
            self.restart(state)
        elif stalks == "random":
            self._random(state, generators)
        else:
            raise ValueError(f'stalks is {stalks!r}; write "random" or "forward"')
        return state

    def _random(self, state: JointState, generators: Sequence[torch.Generator] | None) -> None:
        runs, _, n = state.y.shape
        sources = generators or [torch.Generator().manual_seed(r) for r in range(runs)]
        like = state.y

        def draw(width: int) -> Tensor:
            drawn = [standard_normal((width, n), g, like.dtype, like.device) for g in sources]
            return torch.stack(drawn)

        widths = [w.shape[1] for w in state.w]
        state.z = [draw(m) for m in widths]
        state.a = [state.a[0], *(_with_ones(draw(m)) for m in widths[:-1])]

    @torch.no_grad()
    def restart(self, state: JointState) -> None:
        """Put the stalks back on the forward pass of the present weights."""
        z, a = [], [state.a[0]]
        for w in state.w:
            z.append(torch.bmm(w, a[-1]))
            a.append(_with_ones(z[-1].relu()))
        state.z, state.a = z, a[:-1]

    @torch.no_grad()
    def run(
        self,
        state: JointState,
        steps: int,
        *,
        every: int = 1000,
        callback: Callable[[JointState], None] | None = None,
        restart: bool = False,
    ) -> JointState:
        """Make `steps` Euler steps; every `every` of them call back, and perhaps `restart` stalks.

        Raises `ConvergenceError` with the state when something stops being finite.
        """
        steps, every = whole_number("steps", steps, 0), whole_number("every", every)
        rate = self._weight_rate(state)
        for i in range(1, steps + 1):
            self._step(state, rate)
            state.steps += 1
            if i % every == 0 or i == steps:
                if not all(is_finite(w) for w in state.w):
                    raise ConvergenceError(
                        Outcome.NONFINITE, f"after {state.steps} Euler steps; lower dt", state
                    )
                if callback is not None:
                    callback(state)
                if restart and i != steps:
                    self.restart(state)
        return state

    def _weight_rate(self, state: JointState) -> Tensor:
        """β dt per run, (R, 1, 1)."""
        runs, _, n = state.y.shape
        beta = 1 / n if self.beta is None else self.beta
        rate = torch.as_tensor(beta, dtype=state.y.dtype, device=state.y.device) * self.dt
        if rate.numel() not in (1, runs):
            raise ValueError(f"beta has shape {tuple(rate.shape)}; write one number or ({runs},)")
        return rate.flatten().expand(runs).view(-1, 1, 1)

    def _step(self, state: JointState, rate: Tensor) -> None:
        """One step: every force from the old state, then every update in place."""
        z, a, w, c = state.z, state.a, state.w, self.alpha * self.dt
        last = len(w) - 1
        r = [torch.baddbmm(z[i], w[i], a[i], beta=-1) for i in range(last + 1)]
        moments = [torch.bmm(r[i], a[i].mT) for i in range(last + 1)]
        force = self._force(z[last], state.y)
        for i in range(last):
            stalk = a[i + 1][:, :-1]
            mask = torch.ge(z[i], 0, out=torch.empty_like(z[i]))
            u = torch.addcmul(stalk, mask, z[i], value=-1)  # a − R z, so −R(z − a) = R u
            z[i].add_(r[i], alpha=c).addcmul_(mask, u, value=c)
            stalk.add_(u, alpha=-c)
            stalk.baddbmm_(w[i + 1][..., :-1].mT, r[i + 1], alpha=-c)
        z[last].add_(r[last].sub_(force), alpha=c)
        for i in range(last + 1):
            w[i].addcmul_(rate, moments[i], value=-1)

    def _force(self, z: Tensor, y: Tensor) -> Tensor:
        loss = loss_named(self.loss)
        if isinstance(loss, SquaredLoss):
            return z - y
        if z.shape[1] == 1:  # coordinatewise: no matter where the axis of length 1 stands
            return loss.gradient(z, y)
        flat = loss.gradient(z.mT.flatten(0, 1), y.mT.flatten(0, 1))
        return flat.view(z.shape[0], z.shape[2], z.shape[1]).mT


def _check_input(x: Tensor, weight: Tensor) -> None:
    if x.ndim != 2 or x.shape[1] != weight.shape[1] or x.shape[0] == 0:
        raise ValueError(
            f"input x has shape {tuple(x.shape)}; write (samples, {weight.shape[1]}), one or more"
        )
    if x.dtype != weight.dtype:
        raise ValueError(f"input x is {x.dtype}, the weights {weight.dtype}; make them alike")
    require_beside("input x", x, weight.device, "the weights")
    if not is_finite(x):
        raise ValueError("input x contains NaN or infinity; pass finite numbers")


def _with_ones(a: Tensor) -> Tensor:
    return torch.cat([a, a.new_ones(a.shape[0], 1, a.shape[2])], 1)


def _layers(model: nn.Sequential) -> list[nn.Linear]:
    children = list(model)
    linear, gates = children[0::2], children[1::2]
    if not (
        len(children) % 2
        and all(isinstance(m, nn.Linear) and m.bias is not None for m in linear)
        and all(isinstance(m, nn.ReLU) for m in gates)
    ):
        raise ValueError(
            "joint Euler flow is the paper's, on a path: write nn.Sequential(Linear, ReLU, …, "
            "Linear) with biases; for other models use SheafTrainer"
        )
    return [m for m in linear if isinstance(m, nn.Linear)]
