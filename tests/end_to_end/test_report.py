"""The report as a reader meets it: in a browser, with whatever strings a model brings along."""

import base64
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import torchsheaf as ts
from tests.browser import BrowserPage
from tests.reference.networks import TwoInputs
from torchsheaf.report import Analysis, analyse, headlines, render
from torchsheaf.report.labels import read_labels
from torchsheaf.report.markup import embedded_json, number

HOSTILE = "</script><script>alert(1)</script><img src=x onerror=\"alert(2)\">$title & 'q'"
Analysed = tuple[nn.Module, Tensor, Tensor, Analysis, str]
SECTIONS = ["network", "diagnosis", "proof", "spectrum", "relaxation", "labels", "samples"]


def in_order(found: list[str]) -> bool:
    """Whether the sections that every page has are there, once each and in this order."""
    return [name for name in found if name in SECTIONS] == SECTIONS


def classifier(generator: torch.Generator) -> tuple[nn.Module, Tensor, Tensor]:
    """A small ReLU classifier on 6×6 pictures, on the scale of one-hot vectors."""
    net = nn.Sequential(nn.Linear(36, 8), nn.ReLU(), nn.Linear(8, 3)).double()
    for p in net.parameters():
        p.data = 0.2 * torch.randn(p.shape, generator=generator, dtype=p.dtype)
    x = torch.rand(24, 36, generator=generator, dtype=torch.float64)
    return net, x, torch.randint(0, 3, (24,), generator=generator)


class Hostile(nn.Module):
    """Its module is called what no module should be."""

    def __init__(self) -> None:
        super().__init__()
        self.add_module('<img src=x onerror="alert(3)">', nn.Linear(4, 5))
        self.relu = nn.ReLU()
        self.add_module("</script><b>", nn.Linear(5, 2))

    def forward(self, x: Tensor) -> Tensor:
        first, relu, last = self.children()
        return last(relu(first(x)))


class Tags(HTMLParser):
    """The tags of a page, with the attributes of each."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))


@pytest.fixture(scope="module")
def hostile_page() -> str:
    x = torch.randn(6, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    return ts.report(Hostile().double(), x, torch.zeros(6, 2), title=HOSTILE)


@pytest.fixture(scope="module")
def analysed() -> Analysed:
    net, x, y = classifier(torch.Generator().manual_seed(1))
    analysis = analyse(net, x, y, title=HOSTILE)
    return net, x, y, analysis, render(analysis)


def test_nothing_hostile_becomes_markup(hostile_page: str) -> None:
    page = hostile_page
    tags = Tags(page).found
    assert [t for t, _ in tags].count("script") == 1  # the data, which no browser runs
    assert not [a for _, attributes in tags for a in attributes if a.startswith("on")]
    assert "</script><b>" not in page
    assert "&lt;/script&gt;&lt;b&gt;" in page
    sources = [a.get("src") or "" for t, a in tags if t == "img"]
    assert sources
    assert all(s.startswith("data:image/") for s in sources)
    assert "$title" in page  # a placeholder in a title is text, not a placeholder
    (data,) = re.findall(r'<script type="application/json" id="findings">(.*?)</script>', page)
    assert "<" not in data
    assert json.loads(data)["title"] == HOSTILE


def test_the_same_results_give_the_same_page(analysed: Analysed) -> None:
    assert render(analysed[3]) == analysed[4]


def test_names_inside_pictures_are_text_too(hostile_page: str) -> None:
    found = re.findall(r"data:image/svg\+xml;base64,([A-Za-z0-9+/=]+)", hostile_page)
    assert found
    for encoded in found:
        drawn = base64.b64decode(encoded).decode("utf-8")
        assert "<script" not in drawn
        assert "<img" not in drawn


def test_embedded_data_cannot_close_its_element() -> None:
    text = embedded_json({"a": "</script><!--"}, "x")
    assert text.count("<") == 2
    assert json.loads(re.sub(r"</?script.*?>", "", text)) == {"a": "</script><!--"}


@pytest.mark.browser
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_page_renders(
    browser_page: BrowserPage, tmp_path: Path, analysed: Analysed, scheme: str
) -> None:
    file = tmp_path / "page.html"
    file.write_text(analysed[4], encoding="utf-8")
    browser_page.page.emulate_media(color_scheme=scheme)  # type: ignore[arg-type]
    page = browser_page.open(file)
    assert browser_page.troubles == []
    assert page.inner_text("h1") == HOSTILE
    assert in_order(page.locator("section").evaluate_all("all => all.map(s => s.id)"))
    images = page.locator("img").evaluate_all(
        "all => all.map(i => [i.complete && i.naturalWidth > 0, i.alt.length > 0])"
    )
    assert len(images) >= 10
    assert all(drawn and described for drawn, described in images)
    for width in (390, 1280):
        page.set_viewport_size({"width": width, "height": 800})
        assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert browser_page.troubles == []


def test_every_section_is_there_or_says_why(analysed: Analysed) -> None:
    net, x, _, _, with_labels = analysed
    without = ts.report(net, x)
    for page in (with_labels, without):
        assert in_order(re.findall(r'<section id="([\w-]+)"', page))
    assert "Not on this page" not in with_labels
    assert without.count("Not on this page. No labels were given") == 2


class Smooth(nn.Module):
    """No gates at all, a join, softmax."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(3, 4), nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.tanh(self.one(x))
        return torch.softmax(h + self.two(h), 1)


def convolutional() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(),
        nn.Linear(8, 3),
    ).eval()  # fmt: skip


@pytest.mark.parametrize(
    ("model", "shape", "labels"),
    [
        (nn.Linear(3, 2), (3,), None),
        (Smooth(), (3,), torch.arange(12) % 4),
        (nn.Sequential(nn.ReLU(), nn.Linear(3, 2)), (3,), torch.arange(12) % 2),
        (convolutional(), (1, 6, 6), torch.arange(12) % 3),
        (nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 1)), (3,), torch.arange(12.0)),
    ],
    ids=["affine", "smooth", "gate first", "convolutional", "regression"],
)
def test_any_model_gets_a_page(
    model: nn.Module, shape: tuple[int, ...], labels: Tensor | None, generator: torch.Generator
) -> None:
    x = torch.randn(12, *shape, generator=generator)
    analysis = analyse(model, x, labels)
    assert all(f.holds for f in analysis.findings), [str(f) for f in analysis.findings]
    page = render(analysis)
    assert in_order(re.findall(r'<section id="([\w-]+)"', page))
    assert ("Not on this page" in page) == bool(analysis.missing)
    assert headlines(analysis)


def test_the_page_tells_the_numbers_of_the_analysis(analysed: Analysed) -> None:
    net, x, y, analysis, page = analysed
    assert analysis.smallest is not None
    (text,) = re.findall(r'id="findings">(.*?)</script>', page)
    data = json.loads(text)
    assert data["gap"] == pytest.approx(float(analysis.smallest.values.median()))
    held = ts.hold(ts.encode(net, x), x).pin(ts.Pin("2", nn.functional.one_hot(y, 3).double()))
    again = ts.discord(ts.harmonic_extension(held))
    assert list(data["discord"].values()) == pytest.approx(again.mean.tolist(), rel=1e-5)
    right = float((net(x).argmax(1) == y).double().mean())
    assert f"{right:.1%} of 24 samples" in page


def test_labels_that_do_not_fit_are_named(generator: torch.Generator) -> None:
    output = torch.zeros(4, 3)
    cases: list[tuple[Tensor, str]] = [
        (torch.tensor([0, 1, 2, 3]), "numbered 0 … 2"),
        (torch.tensor([0, -1, 2, 1]), "numbered 0 … 2"),
        (torch.zeros(3, dtype=torch.int64), "one label per sample"),
        (torch.zeros(4, 2), "class numbers"),
        (torch.full((4, 3), float("nan")), "NaN"),
    ]
    for y, message in cases:
        with pytest.raises(ValueError, match=message):
            read_labels(y, output)
    with pytest.raises(TypeError, match="y is a list"):
        read_labels([0, 1, 2, 0], output)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="hold_labels"):
        read_labels(torch.zeros(4, dtype=torch.int64), output, "logits")


def test_what_cannot_be_asked_of_the_nearest_input_is_refused_first() -> None:
    x = torch.randn(6, 4, generator=torch.Generator().manual_seed(3))
    stages: list[str] = []

    def announce(stage: str, number: int, of: int) -> None:
        stages.append(stage)

    def ask(model: nn.Module, inputs: Tensor | tuple[Tensor, ...], nearest: object) -> None:
        ts.report(model, inputs, nearest=nearest, progress=announce)  # type: ignore[arg-type]

    net = nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 3))
    with pytest.raises(ValueError, match="nearest is 3; the output has 3 classes, numbered 0 … 2"):
        ask(net, x, 3)
    for nearest in (-1, 1.5, True):
        with pytest.raises(ValueError, match=f"nearest is {nearest}; write a whole number, 0 or"):
            ask(net, x, nearest)
    with pytest.raises(ValueError, match=r"nearest needs an output \(batch, classes\); it is"):
        ask(nn.Linear(4, 1), x, 0)
    with pytest.raises(ValueError, match="nearest needs a network with one input; this one has"):
        ask(TwoInputs(4), (x.double(), x.double()), 1)
    assert set(stages) == {"reading the network", "forward pass"}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_samples": 0}, "max_samples is 0; write a whole number, 1 or more"),
        ({"max_samples": -3}, "max_samples is -3; write a whole number"),
        ({"weight": 0.0}, "weight is 0.0; write a positive number, math.inf"),
        ({"weight": float("nan")}, "weight is nan; write a positive number"),
        ({"hold_labels": "logits"}, "hold_labels is 'logits'; write one of"),
        ({"y": torch.zeros(9, 2)}, r"y has shape \(9, 2\) for 4 samples; write one label per"),
        ({"y": torch.tensor(1)}, r"y has shape \(\) for 4 samples"),
        ({"seed": 1.5}, "seed is 1.5; write a whole number, 0 or more"),
    ],
)
def test_options_of_the_report_that_do_not_fit(options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ts.report(nn.Linear(3, 2), torch.randn(4, 3), **options)  # type: ignore[arg-type]


def test_scores_are_held_at_the_mean_of_their_class() -> None:
    output = torch.tensor([[9.0, 0.0], [7.0, 2.0], [1.0, 5.0], [6.0, 4.0]])
    y = torch.tensor([0, 0, 1, 1])  # the last is answered wrongly and does not count
    held = read_labels(y, output)
    assert held.target.tolist() == [[8.0, 1.0], [8.0, 1.0], [1.0, 5.0], [1.0, 5.0]]
    assert held.wrong(output).tolist() == [False, False, False, True]
    near = read_labels(y, output / 9)
    assert near.target.tolist() == [[1.0, 0.0], [1.0, 0.0], [0.0, 1.0], [0.0, 1.0]]


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.0, "0"), (0.04541, "0.0454"), (8.3812, "8.38"), (1234.5, "1,234"), (100.0, "100"),
        (1.234e-9, "1.23 × 10⁻⁹"), (-0.5, "−0.5"), (float("nan"), "not a number"),
        (float("inf"), "∞"), (1e-12, "1 × 10⁻¹²"),
    ],
)  # fmt: skip
def test_numbers_for_readers(value: float, text: str) -> None:
    assert number(value) == text


def test_the_report_takes_a_precision_plan() -> None:
    net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
    x = torch.randn(12, 4, generator=torch.Generator().manual_seed(3))
    plan = ts.precision.plan(net, x, budget=1e-2)
    page = ts.report(net, x, plan=plan)
    assert 'id="precision"' in page
    assert 'id="precision"' not in ts.report(net, x)
