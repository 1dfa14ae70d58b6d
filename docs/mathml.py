"""Formulas of the site as MathML, made at build time: reading a page takes no script for them."""

import html
import re

import latex2mathml.converter

# What pymdownx.arithmatex (generic) leaves behind: \(inline\) in a span, \[display\] in a div.
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
