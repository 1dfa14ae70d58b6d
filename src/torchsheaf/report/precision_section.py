"""How few bits each step needs: a precision plan as a section, or as a page of its own."""

import math

from torchsheaf.figures.precision import assignment_figure, error_and_cost_figure
from torchsheaf.precision import Plan
from torchsheaf.report.markup import figure, number, paragraph, percent, table
from torchsheaf.report.section import Section
from torchsheaf.report.template import page_of, version

TITLE = "How few bits each step needs"


def precision_section(plan: Plan) -> Section:
    """The plan in words, its two pictures, who is to blame, and where range is short."""
    body = paragraph(*precision_headlines(plan))
    body += figure(
        lambda theme: error_and_cost_figure(plan, theme=theme),
        f"Share of the output error and of the cost per operation; {_worst(plan)}.",
        "Left: where the output error comes from; the shares of all operations sum to 100%. "
        "Right: where the cost goes. Colours: the number format.",
    )
    if len(plan.assignment) <= 120:
        body += figure(
            lambda theme: assignment_figure(plan, theme=theme),
            "The operations in order, each with its format; strong arrows are casts.",
            "Strong arrows: the number format changes on the way.",
        )
    body += table(
        ("operation", "kernel", "format", "share of error", "error", "casts", "weights"),
        [
            (
                s.operation, s.kind, s.format, percent(s.share), number(s.error),
                number(s.casts), number(s.weights),
            )
            for s in plan.blame()[:15]
        ],
        numeric=(3, 4, 5, 6),
    )  # fmt: skip
    tight = [h for h in plan.headroom if h.bits < 6 or h.refused][:8]
    if tight:
        body += paragraph("Least room before a number overflows, and formats that were ruled out:")
        body += table(
            ("operation", "format", "largest value", "bits of room", "ruled out"),
            [
                (
                    h.operation, h.format, number(h.largest), number(h.bits),
                    "; ".join(f"{f}: {why}" for f, why in h.refused.items()) or "–",
                )
                for h in tight
            ],
            numeric=(2, 3),
        )  # fmt: skip
    for flag in plan.flags:
        body += paragraph(f"Caution: {flag}.")
    return Section("precision", TITLE, body)


def precision_headlines(plan: Plan) -> list[str]:
    """What the plan says, in sentences."""
    lines = [
        f"The output may be wrong by {number(plan.budget)} ({plan.norm} norm).",
        f"The plan was run: it is wrong by {number(plan.measured.value)} at most on "
        f"{len(plan.measured.errors)} inputs, against float64; predicted were "
        f"{number(plan.predicted.value)}.",
        f"It costs {percent(plan.cost.relative)} of fp32 in the profile {plan.cost.profile!r} and "
        f"keeps {number(plan.memory.total / 2**20)} MiB instead of "
        f"{number((plan.memory.weights_fp32 + plan.memory.activations_fp32) / 2**20)}.",
    ]
    if plan.statement is not None:
        lines.append(f"{plan.statement}.")
    bound = plan.measured.reference_bound
    if math.isfinite(bound):
        lines.append(
            f"The float64 reference itself is proved right to {number(bound)} and expected right "
            f"to {number(plan.measured.reference_estimate)}."
        )
    return lines


def _worst(plan: Plan) -> str:
    shares = plan.blame()
    return f"largest: {shares[0].operation}, {percent(shares[0].share)}" if shares else "none"


def precision_page(plan: Plan, title: str) -> str:
    """A self-contained page with the section alone."""
    data = {
        "title": title,
        "budget": plan.budget,
        "measured": plan.measured.value,
        "assignment": dict(plan.assignment),
    }
    return page_of(
        [precision_section(plan)], title=title, headlines=precision_headlines(plan), data=data,
        lead="Every operation of a network can compute in fewer bits at a price in accuracy. This "
        "page says which can, by how much, and who is to blame.",
        footer=f"Made with torchsheaf {version()}.",
    )  # fmt: skip
