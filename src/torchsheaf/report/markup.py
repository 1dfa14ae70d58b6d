"""Text, numbers, tables and figures → HTML; the only place where strings become markup."""

import base64
import html
import io
import json
import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from torchsheaf.figures import Theme

    Draw = Callable[[Theme], Figure]


def escape(text: object) -> str:
    """Any text, safe between tags and inside quoted attributes."""
    return html.escape(str(text), quote=True)


def number(value: float, digits: int = 3) -> str:
    """A number for readers: 0.0454, 8.38, 1.2 × 10⁻⁹, 1,234."""
    if value != value or math.isinf(value):
        return "not a number" if value != value else "∞" if value > 0 else "−∞"
    if value == 0:
        return "0"
    exponent = math.floor(math.log10(abs(value)))
    if -4 <= exponent < 6:
        text = f"{value:,.{max(0, digits - 1 - exponent)}f}"
        return (text.rstrip("0").rstrip(".") if "." in text else text).replace("-", "−")
    mantissa = f"{value / 10.0**exponent:.{digits - 1}f}".rstrip("0").rstrip(".")
    power = str(exponent).translate(str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"))
    return f"{mantissa} × 10{power}".replace("-", "−")


def percent(share: float) -> str:
    """45%, <1%, 0%."""
    return "<1%" if 0 < share < 0.005 else f"{share:.0%}"


def paragraph(*sentences: str) -> str:
    """Plain text as a paragraph."""
    return f"<p>{escape(' '.join(sentences))}</p>\n"


def table(
    heads: Sequence[str], rows: Sequence[Sequence[object]], numeric: Sequence[int] = ()
) -> str:
    """A table of plain text; columns in `numeric` are set right-aligned."""

    def cell(tag: str, i: int, text: object) -> str:
        css = ' class="num"' if i in numeric else ""
        scope = ' scope="col"' if tag == "th" else ""
        return f"<{tag}{scope}{css}>{escape(text)}</{tag}>"

    head = "".join(cell("th", i, h) for i, h in enumerate(heads))
    body = "\n".join(
        "<tr>" + "".join(cell("td", i, c) for i, c in enumerate(row)) + "</tr>" for row in rows
    )
    # Focusable, so that a wide table can be scrolled from the keyboard.
    return (
        f'<div class="scroll" tabindex="0"><table><thead><tr>{head}</tr></thead>\n'
        f"<tbody>{body}</tbody></table></div>\n"
    )


def figure(draw: "Draw", alt: str, caption: str = "", css: str = "") -> str:
    """A figure in the light and the dark theme, as images inside the page."""
    from torchsheaf.figures.style import DARK, LIGHT, as_svg

    drawn = draw(LIGHT)
    light, dark = (_data("image/svg+xml", as_svg(f)) for f in (drawn, draw(DARK)))
    size = [round(inches * 96) for inches in drawn.get_size_inches()]
    legend = f"<figcaption>{escape(caption)}</figcaption>" if caption else ""
    # A wide plot scrolls on a phone rather than shrinking its text away.
    wide = ' class="plot" tabindex="0"' if size[0] > 420 else ""
    return (
        f'<figure class="{escape(css)}"><div{wide}><picture>'
        f'<source media="(prefers-color-scheme: dark)" srcset="{dark}">'
        f'<img src="{light}" alt="{escape(alt)}" width="{size[0]}" height="{size[1]}">'
        f"</picture></div>{legend}</figure>\n"
    )


def picture(drawn: "Figure", alt: str) -> str:
    """A small picture that looks the same in both themes."""
    buffer = io.BytesIO()
    drawn.savefig(buffer, format="png", dpi=100)
    return f'<img src="{_data("image/png", buffer.getvalue())}" alt="{escape(alt)}">'


def embedded_json(value: Any, name: str) -> str:
    """Data for programs that read the page; no `<` survives, so no tag can be closed or opened."""
    text = json.dumps(value, ensure_ascii=True, allow_nan=False)
    for character in "<>&":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return f'<script type="application/json" id="{escape(name)}">{text}</script>\n'


def _data(kind: str, content: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(content).decode('ascii')}"
