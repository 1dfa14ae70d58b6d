"""Formulas of the site as MathML, made at build time: a page needs no script and no network for them."""

import html
import re

import latex2mathml.converter

# What pymdownx.arithmatex leaves behind in generic mode: \(inline\) in a span, \[display\] in a div.
FORMULA = re.compile(
    r'<(?P<tag>span|div) class="arithmatex">\\[(\[](?P<latex>.*?)\\[)\]]</(?P=tag)>', re.DOTALL
)


def on_page_content(page_html: str, **_: object) -> str:
    """MkDocs hook: called with the HTML of each page's text."""
    return FORMULA.sub(_mathml, page_html)


def _mathml(match: re.Match[str]) -> str:
    latex = html.unescape(match["latex"]).strip()
    display = "block" if match["tag"] == "div" else "inline"
    return latex2mathml.converter.convert(latex, display=display)
