"""Where the network disagrees with its labels, edge by edge."""

from torchsheaf.diagnose import Discord
from torchsheaf.figures import discord_figure
from torchsheaf.harmonic import Extension
from torchsheaf.outcome import Outcome
from torchsheaf.report.analysis import Analysis
from torchsheaf.report.markup import figure, number, paragraph, percent, table
from torchsheaf.report.section import Section, absent

TITLE = "Where it disagrees with its labels"


def labels_section(analysis: Analysis) -> Section:
    """Discord per edge with the label held at the output."""
    discord, pulled, labels = analysis.table, analysis.pulled, analysis.labels
    if discord is None or pulled is None or labels is None:
        return absent("labels", TITLE, analysis.missing["labels"])
    total = float(discord.total.mean())
    body = paragraph(
        "Now hold both ends: the input, and at the output the answer that the label asks for.",
        labels.how,
        "Unless the network's answer is exactly that, the steps can no longer all agree. Every "
        "value in between moves to where the total disagreement is least, and what is left on a "
        "step, its discord, says how much that step resists the label.",
    )
    body += paragraph(
        f"Over {len(discord.total)} samples the mean discord is {number(total)}, the sum of the "
        "bars below."
    )
    body += figure(
        lambda theme: discord_figure(discord, theme=theme),
        "Mean discord per step: "
        + ", ".join(
            f"{e.name} {percent(float(s))}"
            for e, s in zip(discord.edges, discord.share, strict=True)
        ),
        "Discord is the squared length of a step's disagreement, averaged over samples. "
        "Percentages are shares of the total. Rules separate the layers: a step with parameters "
        "and what follows it.",
    )
    body += paragraph("Added up by layer and by kind of step:")
    body += '<div class="halves">' + _groups("layer", discord) + _groups("kind", discord) + "</div>"
    body += _trust(pulled)
    return Section("labels", TITLE, body)


def _groups(what: str, discord: Discord) -> str:
    groups = discord.by_layer if what == "layer" else discord.by_kind
    whole = float(discord.total.sum()) or 1.0
    rows = [
        (k, number(float(v.mean())), percent(float(v.sum()) / whole)) for k, v in groups.items()
    ]
    return table((what, "discord", "share"), rows, numeric=(1, 2))


def _trust(pulled: Extension) -> str:
    """How far the relaxation got, in words."""
    worst = float(pulled.stationarity.max())
    sliding = int(pulled.gates.sliding.sum()) if pulled.gates.states else 0
    text = (
        f"Found by the {pulled.solver} solver from the forward pass in {pulled.passes:,} passes; "
        f"largest remaining force on a free value: {number(worst, 2)}."
    )
    if pulled.outcome is not Outcome.SETTLED:
        left = int((pulled.stationarity > 1e-6).sum())
        text += (
            f" The solver stopped early ({pulled.outcome.value}); {left} of "
            f"{pulled.problem.batch} samples have a force above 10⁻⁶, so read their numbers as "
            "upper estimates."
        )
    if sliding:
        gates = sum(t.numel() for t in pulled.gates.states.values())
        text += (
            f" {sliding:,} of {gates:,} gates rest exactly at their switching point, pulled "
            "there from both sides."
        )
    text += (
        " With both ends held there can be several such resting states; this is the one next to "
        "the network's own computation."
    )
    return paragraph(text)
