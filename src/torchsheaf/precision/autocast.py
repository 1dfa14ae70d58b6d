"""torch.autocast's list as an assignment: what the fixed rule by operator name chooses."""

from collections.abc import Sequence

from torchsheaf.precision.dataflow import Dataflow
from torchsheaf.precision.execute import uniform
from torchsheaf.precision.formats import find_format, format_of
from torchsheaf.precision.operators import CONTRACTION
from torchsheaf.precision.problem import AssignmentProblem

# ATen/autocast_mode.h, the CUDA lists: kernels that autocast lifts to float32.
FLOAT32 = set(
    """exp expm1 log log2 log10 log1p pow rsqrt reciprocal sum prod cumsum _softmax _log_softmax
    native_layer_norm native_group_norm softplus erfinv acos asin cosh sinh tan linalg_vector_norm
    mse_loss nll_loss binary_cross_entropy gelu_backward""".split()
)
PROMOTE = {"add", "sub", "mul", "div", "where", "cat", "stack", "index_put", "addcmul", "addcdiv"}


def autocast_assignment(flow: Dataflow, form: str) -> dict[str, str]:
    """The formats of `torch.autocast(dtype=form)` on CUDA: products low, the list above float32,
    everything else in the widest format among its operands. fp16 and bf16 with weights in float32.

    An embedding reads float32 weights and stays float32, as in autocast.
    """
    low = find_format(form).name
    chosen: dict[str, str] = {}

    def held(name: str) -> str:
        source = flow.source[name]
        if source in chosen:
            return chosen[source]
        if source in flow.graph.constants:
            return "fp32"
        return format_of(flow.graph.input_meta[source][1]).name

    for name in flow.choices:
        call = flow.calls[name]
        floating = [held(n) for n in call.operands if n in flow.source]
        if call.packet in CONTRACTION:
            chosen[name] = low
        elif call.packet in FLOAT32:
            chosen[name] = "fp32"
        elif call.packet in PROMOTE:
            dims = {n: len(flow.shapes[n]) for n in call.operands if n in flow.source}
            # A number without axes does not promote a tensor.
            wide = [held(n) for n in dims if dims[n] > 0] or floating
            chosen[name] = "fp32" if "fp32" in wide else low
        else:
            first = next(iter(call.operands), "")
            follows = first in flow.source and call.packet != "embedding"
            chosen[name] = held(first) if follows else "fp32"
    return chosen


def fixed_rules(
    flow: Dataflow, problem: AssignmentProblem, formats: Sequence[str]
) -> list[dict[str, str]]:
    """Every uniform format and autocast's lists as sections of a problem, where they are ones."""
    assignments = [uniform(flow, f) for f in formats]
    assignments += [autocast_assignment(flow, f) for f in formats if f in ("bf16", "fp16")]
    ends = {v: s[0] for v, s in problem.stalks.items() if len(s) == 1}
    sections = []
    for a in assignments:
        section = {**ends, **{flow.labels[c]: f for c, f in a.items()}}
        if problem.supports(section) and section not in sections:
            sections.append(section)
    return sections
