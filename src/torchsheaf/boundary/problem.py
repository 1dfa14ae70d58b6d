"""A sheaf with held values: which coordinates are free, and the energy to be minimised."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property

import torch
from torch import Tensor

from torchsheaf.arguments import cochain_of, require_generator, type_of
from torchsheaf.boundary.pin import Pin, Place, Weight
from torchsheaf.cochain import Cochain, Space, coordinates, is_finite
from torchsheaf.network.placement import require_beside
from torchsheaf.sheaf import Coboundary, Laplacian, Sheaf


@dataclass(frozen=True, eq=False)
class SoftPin:
    """An edge from chosen coordinates of a vertex to a held vertex: residual c_v[index] − p.

    `index` (k,), `target` (batch, k); the weight is one number or `(1 or batch, k)`.
    """

    vertex: str
    index: Tensor
    target: Tensor
    weight: Weight


@dataclass(frozen=True, eq=False, repr=False)
class Problem:
    """Minimise E(c) = ½ Σ_e w_e ‖r_e‖² + ½ Σ_pins γ ‖c_v[S] − p‖² over the free coordinates.

    `held[v]` is the stalk's boolean mask of held coordinates, (batch, *shape) where samples differ
    in them; `values[v]` (batch, *shape) their values (zero elsewhere); `given[v]` what free input
    coordinates start from. Made by `hold`, refined by `pin`; `places` are the pins' coordinates.
    """

    sheaf: Sheaf
    held: Mapping[str, Tensor]
    values: Mapping[str, Tensor]
    soft: tuple[SoftPin, ...] = ()
    weights: Mapping[str, float] = field(default_factory=dict)
    pins: tuple[Pin, ...] = ()
    places: tuple[Place, ...] = ()
    given: Mapping[str, Tensor] = field(default_factory=dict)

    def __repr__(self) -> str:
        held = ", ".join(f"{n}[{int(m.sum())} of {m.numel()}]" for n, m in self.held.items())
        return f"Problem({self.batch} samples; held: {held}; {len(self.soft)} soft pin(s))"

    @property
    def like(self) -> Tensor:
        """A held tensor: gives batch size, dtype and device."""
        for held in self.values.values():
            if held.is_floating_point():
                return held
        # only integers are held (token ids): the first stalk with real numbers gives the dtype
        held = next(iter(self.values.values()))
        return held.new_zeros(held.shape[0], dtype=self.sheaf.network.nodes[0].dtype)

    @cached_property
    def coarsest(self) -> tuple[str, torch.dtype]:
        """The vertex of the least precise type, and that type: what tolerances have to go by.

        A cast inside the model makes some values coarser than its input and its weights. A network
        of one type throughout has the type of its values now, whatever it was read in.
        """
        nodes = self.sheaf.network.nodes
        worst = max(nodes, key=lambda n: torch.finfo(n.coarsest).eps)
        if len({n.coarsest for n in nodes}) == 1:
            return worst.name, self.like.dtype
        return worst.name, worst.coarsest

    def require_digits(self, what: str) -> None:
        """Raise ValueError unless the network is in float32 or float64, which `what` needs."""
        if (dtype := self.like.dtype) not in (torch.float32, torch.float64):
            raise ValueError(
                f"the network is {dtype}; {what} needs float32 or float64: encode model.float()"
            )

    @property
    def batch(self) -> int:
        """Number of samples."""
        return next(iter(self.values.values())).shape[0]

    @cached_property
    def free(self) -> Space:
        """The free coordinates of C⁰, in topological order of their vertices.

        Where samples differ, those that are free in any of them; the others are zero in a sample.
        """
        shapes: dict[str, tuple[int, ...]] = {}
        where: dict[str, Tensor] = {}
        for name, vertex in self.sheaf.vertices.items():
            mask = self.held.get(name)
            if mask is None:
                shapes[name] = vertex.shape
            elif not bool(mask.all()):
                shapes[name] = vertex.shape
                where[name] = ~mask
        return Space(shapes, where)

    @cached_property
    def edge_space(self) -> Space:
        """C¹ with one more block per soft pin, named "pin:<vertex>" (":2", … for further ones)."""
        taps = {n: (p.index.numel(),) for n, p in self.taps.items()}
        return Space({**self.sheaf.edge_space.shapes, **taps})

    @cached_property
    def taps(self) -> dict[str, SoftPin]:
        """Soft pins by the name of their edge."""
        named: dict[str, SoftPin] = {}
        for p in self.soft:
            name, n = f"pin:{p.vertex}", 1
            while name in named:
                n += 1
                name = f"pin:{p.vertex}:{n}"
            named[name] = p
        return named

    @cached_property
    def edge_weights(self) -> dict[str, Weight]:
        """w_e and γ where they are not 1."""
        given: dict[str, Weight] = dict(self.weights)
        given |= {n: p.weight for n, p in self.taps.items()}
        return {n: w for n, w in given.items() if isinstance(w, Tensor) or w != 1}

    @cached_property
    def is_uniform(self) -> bool:
        """Whether all samples hold the same coordinates and are pulled with the same weights."""
        weights = [p.weight for p in self.soft if isinstance(p.weight, Tensor)]
        return not self.free.differs and all(len(w) == 1 for w in weights)

    @property
    def holds_input_only(self) -> bool:
        """Whether the whole input is held and nothing else is, so that T1 and T2 apply."""
        held = {n for n, m in self.held.items() if bool(m.all())}
        return not self.soft and held == set(self.held) == set(self.sheaf.inputs)

    def pin(self, *pins: Pin) -> "Problem":
        """This problem with more pins.

        Raises ValueError for unknown vertices, wrong shapes, and pins that hold one coordinate
        twice (both pins are named).
        """
        problem = self
        for p in pins:
            if not isinstance(p, Pin):
                raise TypeError(f"a {type(p).__name__} came for a pin; write .pin(Pin(…), Pin(…))")
            problem = problem._pin(p)
        return problem

    def _pin(self, pin: Pin) -> "Problem":
        name = self.sheaf.vertex(pin.vertex)
        shape = self.sheaf.vertices[name].shape
        if name in self.sheaf.network.integral:
            raise ValueError(f"{pin}: {name!r} holds integers, which have no energy between them")
        place = pin.place(shape, self.batch)
        chosen = place.mask(self.sheaf.vertices[name].dim)
        self._refuse_conflict(pin, name, chosen)
        noted = replace(self, pins=(*self.pins, pin), places=(*self.places, place))
        if not pin.is_hard:
            target = pin.values(place, shape, self.batch, self.like).clone()
            weight = pin.weights(place, shape, self.batch, self.like)
            soft = SoftPin(name, place.index.to(self.like.device), target, weight)
            return replace(noted, soft=(*self.soft, soft))
        held, values = dict(self.held), dict(self.values)
        mask = chosen.to(self.like.device) | self.held_mask(name)
        old = values.get(name, self.like.new_zeros(self.batch, *shape))
        values[name] = pin.written_over(old, self.like)
        held[name] = mask.reshape(shape if len(mask) == 1 else (self.batch, *shape))
        return replace(noted, held=held, values=values)

    def held_mask(self, vertex: str) -> Tensor:
        """Which coordinates of a vertex are held: `(1, dim)`, `(batch, dim)` if samples differ."""
        mask, dim = self.held.get(vertex), self.sheaf.vertices[vertex].dim
        if mask is None:
            return torch.zeros(1, dim, dtype=torch.bool, device=self.like.device)
        return mask.reshape(-1, dim)

    def _refuse_conflict(self, pin: Pin, name: str, chosen: Tensor) -> None:
        """Two pins may share a coordinate of a sample only if both are soft."""
        dim = self.sheaf.vertices[name].dim
        for other, place in zip(self.pins, self.places, strict=True):
            if self.sheaf.vertex(other.vertex) == name and (pin.is_hard or other.is_hard):
                both = _columns(chosen & place.mask(dim))
                if both:
                    how = (
                        "both hold" if pin.is_hard and other.is_hard else "one holds, one pulls at"
                    )
                    raise ValueError(
                        f"{pin} conflicts with {other}: {how} {name!r} at {both}; leave one out, "
                        "or make both soft (a finite weight)"
                    )
        if both := _columns(chosen & self.held_mask(name).cpu()):
            how = "both hold" if pin.is_hard else "it pulls at what is held,"
            raise ValueError(
                f"{pin} conflicts with the input hold: {how} {name!r} at {both}; free those with "
                "hold(sheaf, x, where=[…]), which holds the coordinates listed (where=[]: none)"
            )

    def require_values(
        self, what: str, at: Mapping[str, Tensor], names: Collection[str] | None = None, *,
        finite: bool = True,
    ) -> None:  # fmt: skip
        """Refuse what is not one finite value per vertex, of the network's shapes and types.

        `names` are the vertices to look at, all of them by default; with `finite=False` NaN may be
        among the values. Raises TypeError or ValueError naming the argument `what` and the vertex.
        """
        if not isinstance(at, Mapping):
            raise TypeError(
                f"{what} is {type_of(at)}; pass {cochain_of(at) or 'a Cochain or a dict'}"
            )
        types = {n.name: n.dtype for n in self.sheaf.network.nodes}
        for name in self.sheaf.vertices if names is None else names:
            wanted = (self.batch, *self.sheaf.vertices[name].shape)
            if name not in at:
                raise ValueError(f"{what} has no value for vertex {name!r}; write one of {wanted}")
            value, here = at[name], f"{what}[{name!r}]"
            if not isinstance(value, Tensor):
                raise TypeError(f"{here} is a {type(value).__name__}; pass a tensor")
            if tuple(value.shape) != wanted:
                raise ValueError(f"{here} has shape {tuple(value.shape)}; write {wanted}")
            # as traced, or as the whole model is since: it may have been converted after encode
            own = self.values[name].dtype if name in self.sheaf.inputs else types[name]
            if value.dtype not in (own, self.like.dtype):
                raise ValueError(
                    f"{here} is {value.dtype}; write .to({own}), as the network has it"
                )
            write = f".to({str(self.like.device)!r})"
            require_beside(here, value, self.like.device, "the problem's values", write)
            if finite and not is_finite(value):
                raise ValueError(f"{here} contains NaN or infinity; pass finite numbers")

    def soft_pull(self, vertex: str) -> tuple[Tensor, Tensor] | None:
        """All soft pins of a vertex together: Σ γ `(1 or batch, dim)` and Σ γ p `(batch, dim)`."""
        pins = [p for p in self.soft if p.vertex == vertex]
        if not pins:
            return None
        own = [len(p.weight) for p in pins if isinstance(p.weight, Tensor)]
        gamma = self.like.new_zeros(max(own, default=1), self.sheaf.vertices[vertex].dim)
        moment = self.like.new_zeros(self.batch, gamma.shape[1])
        for p in pins:
            weight = gamma.new_ones(len(gamma), p.index.numel()) * p.weight
            gamma.index_add_(1, p.index, weight)
            moment.index_add_(1, p.index, p.weight * p.target)
        return gamma, moment

    def samples(self, index: Tensor) -> "Problem":
        """The problem of the chosen samples only."""
        values = {n: t[index] for n, t in self.values.items()}
        given = {n: t[index] for n, t in self.given.items()}
        soft = tuple(
            replace(p, target=p.target[index], weight=_rows(p.weight, index)) for p in self.soft
        )
        vertices = self.sheaf.vertices
        held = {n: m[index] if m.ndim > len(vertices[n].shape) else m for n, m in self.held.items()}
        places = tuple(p.samples(index) for p in self.places)
        sheaf = self.sheaf.at_batch(len(next(iter(values.values()))), values)
        return replace(
            self, sheaf=sheaf, held=held, values=values, given=given, soft=soft, places=places
        )

    def clamp(self, c: Mapping[str, Tensor]) -> Cochain:
        """The cochain with every held coordinate set to its held value."""
        return Cochain({n: self._held_in(n, c[n] if n in c else None) for n in self.sheaf.vertices})

    def _held_in(self, name: str, value: Tensor | None) -> Tensor:
        """A vertex's value with its held coordinates written over; None where all are held."""
        mask = self.held.get(name)
        if mask is None:
            if value is None:
                raise KeyError(name)
            return value
        if value is None or bool(mask.all()):
            return self.values[name]
        return torch.where(mask, self.values[name], value)

    @torch.no_grad()
    def forward(self, added: Mapping[str, Tensor] | None = None) -> Cochain:
        """Substitution through the pins: c_v = f_v(c_parents), held coordinates as they are held.

        `added` holds one term per edge: c_v = f_v(c_parents) + added_v where v is free.
        """
        inputs = {n: self._held_in(n, self.given.get(n)) for n in self.sheaf.inputs}
        if added is None:
            return self.sheaf.substitute(inputs, self._held_in)
        return self.sheaf.substitute(inputs, lambda n, value: self._held_in(n, value + added[n]))

    @torch.no_grad()
    def start(self, kind: str | Cochain, generator: torch.Generator | None = None) -> Cochain:
        """A first cochain: "forward", "zeros", "random" (from `generator`) or one that is given.

        Raises TypeError or ValueError for what is none of these, or no cochain of this problem.
        """
        require_generator(generator)
        if isinstance(kind, Cochain):
            self.require_values("start", kind, self.free.shapes)
            return kind
        wanted = '"forward", "zeros", "random" or a Cochain'
        if not isinstance(kind, str):
            raise TypeError(f"start is {type_of(kind)}; write {cochain_of(kind) or wanted}")
        if kind == "forward":
            return self.forward()
        if kind == "zeros":
            return self.clamp(self.free.zeros(self.batch, self.like))
        if kind == "random":
            return self.clamp(self.free.random(self.batch, self.like, generator))
        raise ValueError(f"start is {kind!r}; write {wanted}")

    @torch.no_grad()
    def residual(self, c: Mapping[str, Tensor]) -> Cochain:
        """r on every edge and soft pin, `(batch, *edge shape)`. Cost: one forward pass."""
        blocks = dict(self.sheaf.residual(c).items())
        for name, p in self.taps.items():
            blocks[name] = coordinates(c[p.vertex])[:, p.index] - p.target
        return Cochain(blocks)

    def energy(self, c: Mapping[str, Tensor], residual: Cochain | None = None) -> Tensor:
        """E(c) per sample, `(batch,)`."""
        r = self.residual(c) if residual is None else residual
        return torch.stack(list(self.edge_energies(r).values())).sum(0)

    def edge_energies(self, residual: Cochain) -> dict[str, Tensor]:
        """½ w_e ‖r_e‖² per edge, ½ Σ_i γ_i r_i² per soft pin, `(batch,)` each; E is their sum."""
        weights = self.edge_weights
        out = {}
        for name, t in residual.items():
            square, w = coordinates(t).square(), weights.get(name, 1.0)
            out[name] = 0.5 * ((w * square).sum(1) if isinstance(w, Tensor) else w * square.sum(1))
        return out

    def force(self, residual: Cochain) -> Cochain:
        """W r: the residual times the edge weights."""
        weights = self.edge_weights
        if not weights:
            return residual
        return Cochain({n: t * weights[n] if n in weights else t for n, t in residual.items()})

    @torch.no_grad()
    def gradient(
        self, c: Mapping[str, Tensor], pattern: Mapping[str, Tensor] | None = None
    ) -> Cochain:
        """∇E on the free coordinates, in the piece that each gate selects (z = 0 is active)."""
        return self.coboundary(c, pattern).adjoint(self.force(self.residual(c)))

    @torch.no_grad()
    def coboundary(
        self, at: Mapping[str, Tensor], pattern: Mapping[str, Tensor] | None = None
    ) -> Coboundary:
        """δ on the free coordinates, linearised at a cochain (gates frozen there)."""
        taps = {n: (p.vertex, p.index) for n, p in self.taps.items()}
        maps = self.sheaf.linearise(at, pattern)
        return Coboundary(maps, self.free, self.edge_space, self._sample(at), taps)

    @torch.no_grad()
    def laplacian(
        self, at: Mapping[str, Tensor], pattern: Mapping[str, Tensor] | None = None
    ) -> Laplacian:
        """L = δᵀWδ on the free coordinates, at the same state."""
        coboundary = self.coboundary(at, pattern)
        shapes = self.sheaf.edge_space.shapes
        unpinned = Coboundary(
            coboundary.maps, Space(shapes), self.sheaf.edge_space, coboundary.sample, {}
        )
        return Laplacian(coboundary, self.edge_weights, unpinned)

    def _sample(self, at: Mapping[str, Tensor]) -> Tensor:
        name = next(iter(self.sheaf.edges))
        return coordinates(at[name])[:, 0]


def _columns(mask: Tensor) -> list[int]:
    """Coordinates that any sample has."""
    return mask.any(0).nonzero().flatten().tolist()


def _rows(weight: Weight, index: Tensor) -> Weight:
    """The chosen samples' weights, where samples have their own."""
    if not isinstance(weight, Tensor) or len(weight) == 1:
        return weight
    return weight[index]


def require_problem(problem: object, *, finite: bool = True) -> None:
    """Raise TypeError for what is no problem, ValueError naming a weight that is not finite.

    `finite=False` does not look at the weights, as `hold` does not: for what says in its outcome
    that a number was not finite.
    """
    if not isinstance(problem, Problem):
        raise TypeError(f"a {type(problem).__name__} came for the problem; write hold(sheaf, x)")
    if finite:
        problem.sheaf.network.require_finite()
