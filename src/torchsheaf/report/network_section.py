"""What the network is: the drawn graph and the table of its cells."""

from matplotlib.figure import Figure

from torchsheaf.figures import Theme, graph_figure
from torchsheaf.report.analysis import Analysis
from torchsheaf.report.markup import escape, figure, paragraph, table
from torchsheaf.report.section import Section

DRAWN_UP_TO = 60
"""Vertices up to which the graph is drawn."""
KINDS = {
    "affine": "affine: a weighted sum of its parent plus a constant (linear layer, convolution…)",
    "gate": "gate: each value passes, is scaled or is cut off, depending on itself (ReLU…)",
    "join": "join: several parents meet in one step (a sum, a concatenation, a product)",
    "smooth": "smooth: a curved function (softmax, sigmoid, normalisation…)",
}


def network_section(analysis: Analysis) -> Section:
    """The computation as vertices and edges."""
    sheaf = analysis.sheaf
    vertices, edges = len(sheaf.vertices), len(sheaf.edges)
    free = analysis.problem.free.dim
    total = sum(t.numel() for t in sheaf.network.parameters().values())
    body = paragraph(
        f"Read step by step, this network has {vertices} vertices and {edges} edges. "
        "A vertex holds one intermediate value of the computation; its edge is the step that "
        "should produce it from earlier values.",
        f"With the input given, {free:,} numbers per sample are left free to take any value. "
        f"The steps have {total:,} learned parameters in all.",
    )
    drawn = ""
    if vertices <= DRAWN_UP_TO:

        def draw(theme: Theme) -> Figure:
            return graph_figure(sheaf, theme=theme)

        drawn = figure(
            draw,
            f"The computation graph: {vertices} vertices from {', '.join(sheaf.inputs)} to "
            f"{', '.join(sheaf.outputs)}; the table lists all of them.",
        )
    narrow = vertices <= 14
    cells = _cells(analysis)
    body += f'<div class="beside">{drawn}<div>{cells}</div></div>\n' if narrow else drawn + cells
    kinds = dict.fromkeys(str(e.kind) for e in sheaf.edges.values())
    items = "".join(f"<li>{escape(KINDS.get(k, k))}</li>" for k in kinds)
    body += f"<p>Kinds of steps here:</p><ul>{items}</ul>\n"
    return Section("network", "What the network is", body)


def _cells(analysis: Analysis) -> str:
    sheaf = analysis.sheaf
    parameters = sheaf.network.parameters()
    rows: list[tuple[object, ...]] = []
    for name in sheaf.inputs:
        v = sheaf.vertices[name]
        rows.append((name, "given", "", _shape(v.shape), ""))
    for e in sheaf.edges.values():
        count = sum(parameters[p].numel() for p in e.parameters)
        step = f"{e.operation} ({e.kind})"
        rows.append(
            (e.name, step, ", ".join(e.parents), _shape(e.shape), f"{count:,}" if count else "")
        )
    return table(("vertex", "step", "from", "shape", "parameters"), rows, numeric=(3, 4))


def _shape(shape: tuple[int, ...]) -> str:
    return "×".join(map(str, shape)) or "1"
