"""Bad arguments to the precision part: refused at the door, in words that help."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from torchsheaf.network import UnsupportedModel
from torchsheaf.network.aten import AtenGraph, trace_aten
from torchsheaf.precision import NoSection, SheafPrecisionOptimizer, check, plan, refute
from torchsheaf.precision.conformance import conformance
from torchsheaf.precision.image_data import load_images, rows_to_tensors
from torchsheaf.precision.profile import load_profile, measure_profile, write_profile


@pytest.fixture(scope="module")
def net() -> tuple[AtenGraph, Tensor]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 3))
    x = torch.randn(4, 5)
    return trace_aten(model, x), x


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"budget": 0.0}, "budget is 0.0; write a positive number"),
        ({"budget": float("nan")}, "budget is nan"),
        ({"budget": True}, "budget is True"),
        ({"norm": "l1"}, "norm is 'l1'; write one of max, rms, relative"),
        ({"formats": "fp32"}, "formats is 'fp32'; write a tuple"),
        ({"formats": ("int8",)}, "format 'int8' is not known"),
        ({"pins": {"nowhere": "fp32"}}, "pins: 'nowhere' names no operation"),
        ({"pins": {"0": "fp64"}}, "asks for 'fp64', which is not among"),
        ({"together": [["0", "nowhere"]]}, "together: 'nowhere' names no operation"),
        ({"together": ["01"]}, "together: '01' is no list; write lists of names"),
        ({"profile": "my-laptop"}, "none of the shipped: bytes, h100, stated"),
        ({"margin": 0.0}, "margin is 0.0"),
        ({"range_margin": 0.5}, "range_margin is 0.5"),
        ({"holdout": torch.zeros(3, 5)}, "do not cut into batches"),
        ({"holdout": (torch.zeros(4, 5), torch.zeros(4, 5))}, "2 tensors came"),
        ({"budget": torch.tensor([1e-2])}, "budget is tensor([0.0100]); write a positive number"),
        ({"budget": "1e-2"}, "budget is '1e-2'; write a positive number"),
        ({"budget": 10**400}, "write a positive number"),
        ({"margin": "x"}, "margin is 'x'; write a number in (0, 1]"),
        ({"range_margin": float("inf")}, "range_margin is inf; write a number ≥ 1"),
        ({"probes": 0}, 'probes is 0; write a whole number, 1 or more, or "full"'),
        ({"probes": -3}, "probes is -3; write a whole number"),
        ({"probes": "auto"}, "probes is 'auto'; write a whole number"),
        ({"probes": 2.5}, "probes is 2.5; write a whole number"),
        ({"probes": True}, "probes is True; write a whole number"),
        ({"rounds": -1}, "rounds is -1; write a whole number, 0 or more"),
        ({"rounds": 2.5}, "rounds is 2.5; write a whole number"),
        ({"generator": 3}, "generator is 3; write torch.Generator().manual_seed(3)"),
        ({"formats": 3}, "formats is 3; write a tuple"),
        ({"norm": torch.zeros(2)}, "write one of max, rms, relative"),
        ({"pins": ["0"]}, "pins is ['0']; write a dictionary"),
        ({"pins": {0: "fp32"}}, "pins: 0 is no name"),
        ({"together": None}, "together is None; write lists of names"),
        ({"together": [[0]]}, "together: 0 is no name"),
        ({"profile": None}, "profile is None"),
        ({"calibration": torch.zeros(0, 5)}, "calibration has shape (0, 5)"),
        ({"holdout": []}, "holdout is an empty list"),
        ({"holdout": torch.zeros(4, 5, dtype=torch.int64)}, "dtype torch.int64"),
        ({"log": None}, "log is None; write a function of one line"),
    ],
)
def test_a_bad_argument_is_named(
    net: tuple[AtenGraph, Tensor], change: dict[str, Any], words: str
) -> None:
    graph, x = net
    arguments: dict[str, Any] = {"budget": 1e-2, **change}
    with pytest.raises((ValueError, TypeError), match=re.escape(words)):
        plan(graph, x, **arguments)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"budget": float("nan")}, "budget is nan; write a positive number"),
        ({"budget": -1}, "budget is -1; write a positive number"),
        ({"budget": float("inf")}, "budget is inf; write a positive number"),
        ({"budget": None}, "budget is None; write a positive number"),
        ({"sweeps": -1}, "sweeps is -1; write a whole number, 0 or more"),
        ({"sweeps": 2.5}, "sweeps is 2.5; write a whole number"),
        ({"format": "int8"}, "format 'int8' is not known"),
    ],
)
def test_a_bad_argument_of_refute_is_named(
    net: tuple[AtenGraph, Tensor], change: dict[str, Any], words: str
) -> None:
    graph, x = net
    arguments: dict[str, Any] = {"format": "fp16", "budget": 1e-2, **change}
    with pytest.raises(ValueError, match=re.escape(words)):
        refute(graph, x, **arguments)


@pytest.mark.parametrize(
    ("inputs", "words"),
    [
        (torch.zeros(0, 5), "inputs has shape (0, 5); pass at least one sample"),
        (None, "inputs is a NoneType; write a tensor (batch, *shape), or a tuple of them"),
        (3, "inputs is a int; write a tensor"),
        ("x", "inputs is a str; write a tensor"),
        (torch.zeros(4, 5).numpy(), "inputs is a ndarray; write a tensor"),
        ((), "inputs is an empty tuple; write a tensor"),
        ((None,), "inputs holds no tensor"),
        (torch.zeros(4, 5, dtype=torch.int64), "does not run on these inputs"),
        (torch.zeros(4, 5, dtype=torch.float64), "does not run on these inputs"),
        (torch.full((4, 5), float("nan")), "contains NaN or infinity; pass finite numbers"),
    ],
)
def test_inputs_that_cannot_be_run_are_refused_in_words(inputs: Any, words: str) -> None:
    model = nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 3))
    with pytest.raises((ValueError, TypeError), match=re.escape(words)):
        plan(model, inputs, 1e-2)
    with pytest.raises((ValueError, TypeError), match=re.escape(words)):
        refute(model, inputs, "fp16", 1e-2)


def test_what_is_no_model_or_no_tensor_is_a_type_error(net: tuple[AtenGraph, Tensor]) -> None:
    graph, x = net
    nothing: Any = "m"
    with pytest.raises(TypeError, match=r"model is a str; pass an nn\.Module"):
        SheafPrecisionOptimizer(nothing).analyze(x)
    with pytest.raises(TypeError, match=r"model is a str; pass an nn\.Module"):
        plan(nothing, x, 1e-2)
    with pytest.raises(TypeError, match=r"model is a str; pass an nn\.Module"):
        refute(nothing, x, "fp16", 1e-2)
    with pytest.raises(TypeError, match="holdout is a str; write a tensor"):
        plan(graph, x, 1e-2, holdout=nothing)


@pytest.mark.parametrize(
    ("inputs", "words"),
    [
        (torch.zeros(4, 2), "does not run on these inputs"),
        (torch.zeros(4, 5, dtype=torch.int64), "does not run on these inputs"),
        ((torch.zeros(4, 5), torch.zeros(4, 5)), "inputs: 2 came, the model takes 1"),
    ],
)
def test_refute_tries_a_traced_graph_on_its_inputs(
    net: tuple[AtenGraph, Tensor], inputs: Any, words: str
) -> None:
    with pytest.raises(ValueError, match=re.escape(words)):
        refute(net[0], inputs, "fp16", 1e-2)


def test_numbers_of_other_libraries_are_numbers(net: tuple[AtenGraph, Tensor]) -> None:
    import numpy as np

    graph, x = net
    plain = plan(graph, x, 1e-2, probes=2)
    for budget in (torch.tensor(1e-2), np.float32(1e-2), torch.tensor(1e-2, dtype=torch.float64)):
        found = plan(graph, x, budget, probes=np.int64(2))  # type: ignore[arg-type]
        assert type(found.budget) is float
        assert found.assignment == plain.assignment
        assert json.loads(json.dumps(found.certificate))["budget"] == found.budget
    assert refute(graph, x, "fp16", torch.tensor(1e-9)).refuted  # type: ignore[arg-type]


def test_a_list_is_a_list_of_batches(net: tuple[AtenGraph, Tensor]) -> None:
    _, x = net
    model = nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 3))
    found = plan(model, [x, x + 1.0, (x - 1.0,)], 1e-2)
    assert len(found.measured.errors) == 3 * len(x)


def test_pins_take_every_name_of_a_format(net: tuple[AtenGraph, Tensor]) -> None:
    graph, x = net
    found = plan(graph, x, 1e-2, pins={"0": "float32", "2": torch.float16})  # type: ignore[dict-item]
    assert found.assignment["0"] == "fp32"
    assert found.assignment["2"] == "fp16"


def test_non_finite_inputs_and_weights_are_named(net: tuple[AtenGraph, Tensor]) -> None:
    graph, x = net
    with pytest.raises(ValueError, match="contains NaN or infinity"):
        plan(graph, torch.full_like(x, float("inf")), 1e-2)
    model = nn.Linear(5, 2)
    with torch.no_grad():
        model.weight[0, 0] = float("nan")
    with pytest.raises(ValueError, match="weight 'weight' contains NaN"):
        plan(model, x, 1e-2)


def test_a_budget_that_no_format_meets_says_what_was_measured(
    net: tuple[AtenGraph, Tensor],
) -> None:
    graph, x = net
    with pytest.raises(NoSection, match="no section meets the budget") as caught:
        plan(graph, x, 1e-9, formats=("bf16", "fp16"))
    assert caught.value.reason == "budget"
    assert caught.value.measured is not None
    assert caught.value.measured.value > 1e-9
    assert caught.value.certificate is not None
    assert check(caught.value.certificate)[0].startswith("PROVED infeasible")


@pytest.mark.parametrize("budget", [1e-8, 1e-11, 1e-18, 1e-155, 1e-162, 1e-300])
def test_a_budget_out_of_reach_is_refused_with_a_proof_and_the_budget_that_works(
    net: tuple[AtenGraph, Tensor], budget: float
) -> None:
    graph, x = net
    with pytest.raises(NoSection, match="raise the budget to ") as caught:
        plan(graph, x, budget)
    assert caught.value.reason == "budget"
    assert caught.value.certificate is not None
    assert check(caught.value.certificate)[0].startswith("PROVED infeasible")
    reachable = float(str(caught.value).split("raise the budget to ")[1].split()[0])
    assert caught.value.reachable is not None
    assert caught.value.reachable <= reachable
    assert plan(graph, x, caught.value.reachable).measured.value <= reachable
    assert plan(graph, x, reachable).measured.value <= reachable


def test_a_budget_below_the_error_of_the_reference_is_flagged(
    net: tuple[AtenGraph, Tensor],
) -> None:
    graph, x = net
    tiny = plan(graph, x, 1e-200, formats=("fp64", "fp32"))
    assert set(tiny.assignment.values()) == {"fp64"}
    assert any("float64 reference itself" in f for f in tiny.flags)
    plain = plan(graph, x, 1e-5, formats=("fp64", "fp32"))
    assert not any("float64 reference itself" in f for f in plain.flags)


def test_a_budget_whose_square_is_infinite_is_one(net: tuple[AtenGraph, Tensor]) -> None:
    graph, x = net
    found = plan(graph, x, 1e200)
    assert found.cost.value == plan(graph, x, 1e3).cost.value
    assert any("PROVED" in line for line in check(found.certificate))


def test_an_operation_without_a_format_says_why() -> None:
    class Huge(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.exp(x + 20.0)

    with pytest.raises(NoSection, match="fp16 ends at 65504") as caught:
        plan(Huge(), torch.ones(2, 3), 1.0, formats=("fp16",))
    assert caught.value.reason == "empty stalk"
    with pytest.raises(NoSection, match="pinned to fp16"):
        plan(Huge(), torch.ones(2, 3), 1e9, pins={"exp": "fp16"})


class Odd(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.special.bessel_j0(x) + torch.lgamma(x)


class Random(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x + torch.rand_like(x)


class Branching(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * 2 if float(x.sum()) > 0 else x


@pytest.mark.parametrize(
    ("model", "words"),
    [(Odd(), "lgamma"), (Random(), "draws random numbers"), (Branching(), "could not lower")],
)
def test_models_that_cannot_be_planned_list_the_offenders(model: nn.Module, words: str) -> None:
    with pytest.raises(UnsupportedModel, match=words) as caught:
        plan(model, torch.rand(2, 3), 1e-2)
    assert caught.value.offenders


def test_a_model_without_floating_output_is_refused() -> None:
    class Label(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.tanh(x).argmax(-1)

    with pytest.raises(ValueError, match="no floating-point tensor"):
        plan(Label(), torch.rand(2, 3), 1e-2)


def test_training_mode_is_refused() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.5))
    with pytest.raises(ValueError, match=r"call model\.eval\(\) first"):
        plan(model, torch.rand(2, 4), 1e-2)


def test_profiles_are_checked_and_travel_through_files(tmp_path: Path) -> None:
    good = load_profile("stated")
    path = tmp_path / "mine.json"
    write_profile(good, path)
    assert load_profile(path) == good
    data = json.loads(path.read_text())
    for change, words in (
        ({"byte": -1.0}, "byte is -1.0"),
        ({"contraction": {"fp12": 1.0}}, "'fp12' is no format"),
        ({"contraction": {"fp16": "fast"}}, "write a finite number"),
        ({"elementwise": [1.0]}, "elementwise is [1.0]; write a table of formats"),
    ):
        with pytest.raises(ValueError, match=re.escape(words)):
            load_profile({**data, **change})
    for content in ("{", "[1]", "3", "\x00\xff"):
        path.write_text(content, encoding="latin-1")
        with pytest.raises(ValueError, match=re.escape(str(path))):
            load_profile(path)
    del data["byte"]
    with pytest.raises(ValueError, match="lacks 'byte'"):
        load_profile(data)
    here = measure_profile(size=64)
    assert here.byte > 0
    assert set(here.contraction) == {"fp64", "fp32", "bf16", "fp16"}


def test_a_conformance_run_that_checks_nothing_is_no_success() -> None:
    with pytest.raises(ValueError, match="none of them has a check"):
        conformance(("bf16",), operators=["nowhere"])


def test_image_rows_of_either_schema_are_read(tmp_path: Path) -> None:
    import numpy as np

    gray = [{"image": np.full((28, 28), 255, np.uint8), "label": 3}] * 5
    x, y = rows_to_tensors(gray, 4)
    assert x.shape == (4, 1, 28, 28)
    assert float(x.max()) == 1.0
    assert y.tolist() == [3] * 4
    colour = [{"img": np.zeros((32, 32, 3), np.uint8), "label": 9}]
    assert rows_to_tensors(colour, 10)[0].shape == (1, 3, 32, 32)
    with pytest.raises(ValueError, match="is needed"):
        rows_to_tensors([{"pixels": 1, "label": 0}], 1)
    with pytest.raises(ValueError, match="no rows"):
        rows_to_tensors([], 1)
    pytest.importorskip("datasets")
    with pytest.raises(ValueError, match="holds no test"):
        load_images(str(tmp_path), "test")
    with pytest.raises(ValueError, match="write digits"):
        load_images("imagenet")


def test_local_files_of_the_same_schema_load_through_datasets(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    import numpy as np
    from PIL import Image

    for key, shape in (("image", (28, 28)), ("img", (32, 32, 3))):
        folder = tmp_path / key
        folder.mkdir()
        pictures = [Image.fromarray(np.full(shape, 40 * i, np.uint8)) for i in range(5)]
        features = datasets.Features({key: datasets.Image(), "label": datasets.Value("int64")})
        rows = datasets.Dataset.from_dict({key: pictures, "label": list(range(5))}, features)
        rows.to_parquet(str(folder / "test-00000.parquet"))
        x, y = load_images(str(folder), "test")
        assert x.shape[0] == 5
        assert x.shape[2:] == shape[:2]
        assert y.tolist() == [0, 1, 2, 3, 4]
        assert float(x[2].max()) == pytest.approx(80 / 255)
