"""Models that cannot be read, or not as given: every error says what came and what to write."""

import logging
import re

import pytest
import torch
from torch import Tensor, nn

from tests.reference.networks import convnet, fill, randn, relu_mlp
from torchsheaf import UnsupportedModel, encode, harmonic_extension, hold


def says(error: BaseException, *words: str) -> None:
    for word in words:
        assert re.search(word, str(error)), f"{word!r} is not in: {error}"


class Unknown(nn.Module):
    """Two operations without a rule, in a module of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(3, 3)
        self.strange = Strange()

    def forward(self, x: Tensor) -> Tensor:
        return self.strange(self.first(x))


class Strange(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.special.i1(torch.special.i0(x))


def test_unknown_operations_are_all_listed_with_module_and_line() -> None:
    with pytest.raises(UnsupportedModel) as caught:
        encode(Unknown().double(), randn(1, 2, 3))
    says(caught.value, "2 node", "i0", "i1", "'strange'", r"test_models\.py:\d+")
    assert len(caught.value.offenders) == 2
    assert {o.module for o in caught.value.offenders} == {"strange"}
    line = int(caught.value.offenders[0].source.split(":")[1])
    with open(__file__, encoding="utf-8") as file:
        assert "special.i0" in file.read().splitlines()[line - 1]


class Branching(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(3, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = self.first(x)
        if h.sum() > 0:
            return h
        return -h


def test_control_flow_that_depends_on_data() -> None:
    with pytest.raises(UnsupportedModel) as caught:
        encode(Branching().double(), randn(1, 2, 3))
    says(caught.value, "depends on the data", r"test_models\.py:\d+")


@pytest.mark.parametrize(
    ("model", "words"),
    [
        (lambda: nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4)), "batch-norm in training"),
        (lambda: nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.5)), "dropout in training"),
        (
            lambda: nn.Sequential(nn.Unflatten(1, (2, 2)), nn.Dropout1d(0.5), nn.Flatten()),
            "dropout",
        ),
    ],
)
def test_training_mode(model, words: str) -> None:  # type: ignore[no-untyped-def]
    network = model().double().train()
    with pytest.raises(UnsupportedModel) as caught:
        encode(network, randn(2, 3, 4), unused_parameters="allow")
    says(caught.value, words, r"model\.eval\(\)")
    if len(list(network.parameters())):
        assert caught.value.offenders[0].module == "1"
    encode(network.eval(), randn(2, 3, 4))


def test_encoding_leaves_batch_statistics_alone() -> None:
    """Neither the trace nor the check against the model may update a running mean."""
    model = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4)).double().train()
    before = {n: t.clone() for n, t in model.state_dict().items()}
    with pytest.raises(UnsupportedModel):
        encode(model, randn(2, 3, 4))
    assert all(torch.equal(t, before[n]) for n, t in model.state_dict().items())


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize(
    "body",
    [
        lambda: nn.Sequential(nn.Linear(4, 4), nn.ReLU()),
        lambda: nn.Sequential(nn.BatchNorm1d(5), nn.Dropout(0.5), nn.Linear(4, 4)),
    ],
    ids=["plain", "batch statistics and dropout"],
)
def test_an_input_that_the_model_itself_refuses(  # type: ignore[no-untyped-def]
    body, training: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is the input's fault: no UnsupportedModel, no log of the tracer, nothing changed."""
    logged: list[str] = []
    monkeypatch.setattr(logging.Logger, "handle", lambda _, record: logged.append(record.msg))
    model = body().double().train(training)
    before = {n: t.clone() for n, t in model.state_dict().items()}
    state = torch.get_rng_state()
    with pytest.raises(ValueError, match="the model itself does not accept this input") as caught:
        encode(model, randn(2, 3, 5))
    assert not isinstance(caught.value, UnsupportedModel)
    says(caught.value, r"shape \(3, 5\) of torch\.float64", "mat1 and mat2 shapes cannot be")
    assert logged == []
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(t, before[n]) for n, t in model.state_dict().items())
    assert all(m.training is training for m in model.modules())


def test_unused_parameters_are_named_or_allowed() -> None:
    model = relu_mlp([3, 4, 2], 1)
    model.register_module("spare", nn.Linear(2, 2).double())
    model.forward = lambda x: model[2](model[1](model[0](x)))  # type: ignore[method-assign]
    with pytest.raises(UnsupportedModel) as caught:
        encode(model, randn(1, 2, 3))
    says(caught.value, r"spare\.weight", r"spare\.bias", 'unused_parameters="allow"')
    assert len(caught.value.offenders) == 2
    assert "spare" not in encode(model, randn(1, 2, 3), unused_parameters="allow").vertices
    with pytest.raises(ValueError, match="unused_parameters is 'ignore'"):
        encode(model, randn(1, 2, 3), unused_parameters="ignore")


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_nonfinite_weights_are_named(value: float) -> None:
    model = relu_mlp([3, 4, 2], 2)
    with torch.no_grad():
        model[2].weight[1, 2] = value
    with pytest.raises(ValueError, match=r"'2\.weight' contains NaN or infinity"):
        encode(model, randn(1, 2, 3))


def test_nonfinite_statistics_are_named() -> None:
    model = convnet(3)
    model[1].running_var[0] = float("nan")  # type: ignore[index, union-attr]
    with pytest.raises(ValueError, match=r"'1\.running_var'"):
        encode(model, randn(1, 2, 1, 8, 8))


class Flat(nn.Module):
    """A model that fixes its batch in a view."""

    def __init__(self, batch: int) -> None:
        super().__init__()
        self.batch = batch
        self.inner = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x.view(self.batch, 4)) if self.batch else self.inner(x.view(len(x), 4))


def test_a_fixed_batch_is_refused_where_it_cannot_be_another() -> None:
    """The model itself does not run on another batch, and the error is that of the model."""
    model = fill(Flat(3), 4)
    sheaf = encode(model, randn(5, 3, 2, 2))
    assert torch.equal(
        harmonic_extension(hold(sheaf, randn(6, 3, 2, 2))).output, model(randn(6, 3, 2, 2)).detach()
    )
    with pytest.raises(ValueError, match=r"\(5, 2, 2\)"):
        hold(sheaf, randn(7, 5, 2, 2))
    with pytest.raises(ValueError, match=r"batch"):
        sheaf.forward(randn(7, 5, 2, 2))


class Positions(nn.Module):
    """A branch on the batch size: torch.export has to fix it, the model accepts any."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        y = self.inner(x)
        return torch.relu(y) if x.shape[0] == 3 else 2 * y


@pytest.mark.parametrize("batch", [1, 3, 6])
def test_a_model_that_fixes_its_batch_is_captured_again(batch: int) -> None:
    model = fill(Positions(), 8)
    x = randn(9, batch, 4)
    extension = harmonic_extension(hold(encode(model, randn(10, 3, 4)), x))
    assert torch.equal(extension.output, model(x).detach())


class Mutating(nn.Module):
    """In-place operations: on a value used twice, on a sum, and first of all on the input."""

    def __init__(self, on_input: bool) -> None:
        super().__init__()
        self.on_input = on_input
        self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        if self.on_input:
            x = x.mul_(2.0).relu_()
        h = self.first(x)
        g = torch.relu_(h)
        g = g + h
        g += self.second(h)
        return g.clamp_(-1.0, 1.0) if hasattr(self, "clamped") else g


@pytest.mark.parametrize("on_input", [False, True])
def test_in_place_operations_are_followed(on_input: bool) -> None:
    model = fill(Mutating(on_input), 11)
    x = randn(12, 5, 4)
    kept = x.clone()
    sheaf = encode(model, x)
    assert torch.equal(x, kept), "encode changed the caller's input"
    extension = harmonic_extension(hold(sheaf, x))
    assert torch.equal(x, kept), "the extension changed the caller's input"
    assert torch.allclose(extension.output, model(x.clone()).detach(), rtol=1e-12)


class MutatedView(nn.Module):
    """Writes through a view: the base changes without being named."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        h = self.first(x)
        h[:, :2].relu_()
        return 2 * h


def test_a_write_through_a_view_is_right_or_refused() -> None:
    model, x = fill(MutatedView(), 13), randn(14, 5, 4)
    try:
        sheaf = encode(model, x)
    except UnsupportedModel as error:
        says(error, "view|mutat|in place|in-place")
        return
    assert torch.equal(sheaf.forward(x)[sheaf.outputs[0]], model(x).detach())


@pytest.mark.parametrize(
    "mix",
    [
        lambda x: torch.softmax(x, 0),
        lambda x: x - x.mean(0, keepdim=True),
        lambda x: x * x[:1],
        lambda x: x.flip(0),
        lambda x: x @ (x.transpose(0, 1) @ x),
        lambda x: torch.cumsum(x, 0),
    ],
)
def test_samples_that_see_each_other_are_refused(mix) -> None:  # type: ignore[no-untyped-def]
    """A sheaf is one per sample; a network that mixes the batch has none."""

    class Mixing(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = nn.Linear(3, 3)

        def forward(self, x: Tensor) -> Tensor:
            return mix(self.first(x))

    with pytest.raises(UnsupportedModel) as caught:
        encode(fill(Mixing(), 15), randn(16, 4, 3))
    says(caught.value, "batch|sample|no rule")


class Random(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(3, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.first(x) + torch.randn_like(x)


def test_a_random_model_is_refused() -> None:
    with pytest.raises(UnsupportedModel):
        encode(fill(Random(), 17), randn(18, 4, 3))


def test_no_output_depends_on_the_input() -> None:
    class Constant(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.value = nn.Parameter(torch.ones(3).double())

        def forward(self, x: Tensor) -> Tensor:
            return self.value * 2

    with pytest.raises(UnsupportedModel, match="output"):
        encode(Constant(), randn(19, 2, 3), unused_parameters="allow")


@pytest.mark.parametrize("thing", ["model.pt", 3, None, {"weight": 1}])
def test_what_is_no_model_is_a_type_error(thing: object) -> None:
    with pytest.raises(TypeError, match=r"model is .*nn\.Module"):
        encode(thing, randn(1, 2, 3))  # type: ignore[arg-type]


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
def test_a_scripted_model_is_unsupported() -> None:
    scripted = torch.jit.script(relu_mlp([3, 4, 2], 1))
    with pytest.raises(UnsupportedModel, match="ScriptModule.*pass the nn.Module that it was"):
        encode(scripted, randn(1, 2, 3))


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
def test_a_traced_model_is_unsupported() -> None:
    traced = torch.jit.trace(relu_mlp([3, 4, 2], 1), randn(1, 2, 3))
    with pytest.raises(UnsupportedModel, match="ScriptModule.*pass the nn.Module that it was"):
        encode(traced, randn(1, 2, 3))


def test_a_model_in_a_parallel_wrapper_is_unsupported() -> None:
    with pytest.raises(UnsupportedModel, match=r"DataParallel cannot be traced; pass its \.module"):
        encode(nn.DataParallel(relu_mlp([3, 4, 2], 1)), randn(1, 2, 3))


def test_a_function_is_no_model() -> None:
    with pytest.raises(TypeError, match=r"model is .*nn\.Module"):
        encode(torch.relu, randn(1, 2, 3))  # type: ignore[arg-type]


def test_form_is_named() -> None:
    with pytest.raises(ValueError, match=r"form is 'both'; write one of 'unfused', 'fused'"):
        encode(relu_mlp([3, 2], 0), randn(1, 2, 3), form="both")


def test_a_language_model_that_returns_its_cache() -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.GPT2Config(
        n_layer=1, n_head=2, n_embd=16, vocab_size=20, n_positions=8, bos_token_id=0, eos_token_id=0
    )
    model = transformers.GPT2LMHeadModel(config).eval()
    ids = torch.randint(20, (4, 5), generator=torch.Generator().manual_seed(0))
    with pytest.raises(UnsupportedModel, match=r"set model\.config\.use_cache = False"):
        encode(model, ids)
    model.config.use_cache = False
    assert encode(model, ids).outputs == ("lm_head",)


@pytest.mark.parametrize("norm", [nn.utils.spectral_norm, nn.utils.parametrizations.spectral_norm])
def test_a_forward_that_rewrites_a_buffer(norm) -> None:  # type: ignore[no-untyped-def]
    """Power iterations of a spectral norm: named, and undone whether they were refused or not."""
    model = fill(nn.Sequential(norm(nn.Linear(4, 3))), 3).train()
    before = {n: t.clone() for n, t in model.named_buffers()}
    with pytest.raises(UnsupportedModel) as caught:
        encode(model, randn(2, 3, 4))
    says(caught.value, "rewrites a buffer", r"model\.eval\(\)")
    assert all(torch.equal(t, before[n]) for n, t in model.named_buffers())
    encode(model.eval(), randn(2, 3, 4))


class Counted(nn.Module):
    """Its values depend on how often it was called."""

    calls: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("calls", torch.ones((), dtype=torch.float64))

    def forward(self, x: Tensor) -> Tensor:
        self.calls.mul_(2)
        return torch.tanh(x) * self.calls


def test_a_forward_that_counts_its_calls() -> None:
    model = Counted()
    with pytest.raises(UnsupportedModel):
        encode(model, randn(2, 3, 4))
    assert float(model.calls) == 1


def test_models_that_no_eval_makes_readable() -> None:
    batch = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4, track_running_stats=False))
    with pytest.raises(UnsupportedModel, match="track_running_stats=True"):
        encode(batch.double().eval(), randn(2, 3, 4))
    renormed = nn.Sequential(nn.Embedding(5, 4, max_norm=1.0), nn.Linear(4, 2))
    with pytest.raises(UnsupportedModel, match="without max_norm"):
        encode(renormed, torch.tensor([[0, 1], [2, 3]]))


class Named(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(4, 2), nn.Linear(3, 2)

    def forward(self, image: Tensor, text: Tensor, scale: float = 2.0) -> Tensor:
        return self.a(image) + scale * self.b(text)


def test_inputs_by_argument_name() -> None:
    model, image, text = fill(Named(), 3), randn(2, 5, 4), randn(3, 5, 3)
    sheaf = encode(model, {"text": text, "image": image})
    found = sheaf.forward({"text": text, "image": image})[sheaf.outputs[0]]
    assert torch.equal(found, model(image, text).detach())
    for wrong in ({"image": image, "txt": text}, {"text": text}):
        with pytest.raises(ValueError, match="takes image, text, scale"):
            encode(model, wrong)


class Scaled(nn.Module):
    """A vector of weights beside a value (batch, width), and a view that names the batch size."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(4, 4), nn.Linear(2, 2)
        self.scale = nn.Parameter(torch.ones(4))

    def forward(self, x: Tensor) -> Tensor:
        y = torch.relu(self.first(x)) * self.scale
        return self.last(y.view(x.shape[0], 2, 2)).flatten(1)


@pytest.mark.parametrize("batch", [2, 3, 4])
def test_a_batch_as_large_as_another_axis_is_not_taken_for_it(batch: int) -> None:
    model = fill(Scaled(), 3)
    sheaf = encode(model, randn(1, batch, 4))
    x = randn(2, 7, 4)
    assert torch.equal(sheaf.forward(x)[sheaf.output()], model(x).detach())
