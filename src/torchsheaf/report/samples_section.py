"""The samples that disagree most, shown as what they are."""

import torch
from matplotlib.figure import Figure
from torch import Tensor

from torchsheaf.figures import Theme, sample_bars, sample_picture
from torchsheaf.report.analysis import Analysis
from torchsheaf.report.labels import Labels
from torchsheaf.report.markup import escape, figure, number, paragraph, picture
from torchsheaf.report.section import Section, absent

TITLE = "The samples that disagree most"
SHOWN = 10


def samples_section(analysis: Analysis) -> Section:
    """Pictures (or bars) of the samples of largest discord, with label and prediction."""
    discord, labels = analysis.table, analysis.labels
    if discord is None or labels is None:
        return absent("samples", TITLE, analysis.missing["labels"])
    output = analysis.output
    total = discord.total
    usual = float(total.median())
    chosen = discord.worst(min(SHOWN, len(total))).tolist()
    wrong = labels.wrong(output)[: len(total)]
    body = paragraph(
        "Discord per sample needs no threshold and no second model: it is what the label costs "
        f"this network. The usual sample (the median) has {number(usual)}; these have most.",
    )
    if labels.is_classes:
        count = int(wrong.sum())
        framed = int(wrong[chosen].sum())
        text = (
            f"{framed} of these {len(chosen)} are classified otherwise than labelled (framed); "
            f"among all {len(total)} samples it is {count}."
        )
        if framed < len(chosen):
            text += " The others are answered as labelled, but narrowly."
        body += paragraph(text)
    values = analysis.inputs[0]
    items = [_item(analysis, labels, values, i, float(total[i]), usual, wrong) for i in chosen]
    body += f'<ul class="samples">{"".join(items)}</ul>\n'
    if sample_picture(values[0], values) is None:
        body += paragraph("Bars show the numbers of the input, all on one scale.")
    return Section("samples", TITLE, body)


def _item(
    analysis: Analysis, labels: Labels, values: Tensor, i: int, discord: float, usual: float,
    wrong: Tensor,
) -> str:  # fmt: skip
    output = analysis.output[i]
    bad = bool(wrong[i])
    label, answer = _words(labels, output, i)
    alt = f"sample {i}, label {label}, answer {answer}"
    drawn = sample_picture(values[i], values)
    if drawn is not None:
        shown = picture(drawn, alt)
    else:

        def draw(theme: Theme) -> Figure:
            return sample_bars(values[i], values, theme=theme)

        shown = figure(draw, alt)
    ratio = discord / usual if usual > 0 else 0.0
    # Beyond a thousand the usual sample simply has no discord to speak of.
    times = "" if not ratio else f" ({number(ratio, 2) if ratio < 1000 else '>1,000'}× the usual)"
    css = ' class="wrong"' if bad else ""
    return (
        f"<li{css}>{shown}label <b>{escape(label)}</b>, answer <b{css}>{escape(answer)}</b><br>"
        f"discord {escape(number(discord))}{escape(times)}<br>sample {i}</li>\n"
    )


def _words(labels: Labels, output: Tensor, i: int) -> tuple[str, str]:
    """Label and answer of a sample for readers."""
    if labels.is_classes:
        return str(int(labels.y[i])), str(int(output.argmax()))
    wanted, got = labels.target[i].flatten(), output.flatten()
    if wanted.numel() == 1:
        return number(float(wanted)), number(float(got))
    worst = int(torch.argmax((wanted - got).abs()))
    return (
        f"{number(float(wanted[worst]))} (coordinate {worst})",
        number(float(got[worst])),
    )
