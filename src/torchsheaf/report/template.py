"""`page.html` filled in: sections between a head and a foot, with nothing outside the file."""

import importlib.metadata
from collections.abc import Mapping, Sequence
from importlib.resources import files
from string import Template
from typing import Any

from torchsheaf.report.markup import embedded_json, escape, paragraph
from torchsheaf.report.section import Section


def page_of(
    sections: Sequence[Section],
    *,
    title: str,
    lead: str,
    headlines: Sequence[str],
    footer: str,
    data: Mapping[str, Any],
    glossary: Mapping[str, str] | None = None,
) -> str:
    """A self-contained page; all but the sections is plain text, and `data` is for programs."""
    folder = files("torchsheaf.report")
    terms = "".join(
        f"<dt>{escape(t)}</dt><dd>{escape(d)}</dd>" for t, d in (glossary or {}).items()
    )
    words = f"<details><summary>The words on this page</summary><dl>{terms}</dl></details>"
    return Template((folder / "page.html").read_text("utf-8")).substitute(
        version=escape(version()),
        title=escape(title),
        style=(folder / "style.css").read_text("utf-8"),
        lead=f'<p class="lead">{escape(lead)}</p>\n',
        contents="".join(
            f'<li><a href="#{escape(s.name)}">{escape(s.title)}</a></li>\n' for s in sections
        ),
        headlines="".join(f"<li>{escape(line)}</li>\n" for line in headlines),
        glossary=words if terms else "",
        sections="".join(s.html() for s in sections),
        footer=paragraph(footer),
        data=embedded_json(data, "findings"),
    )


def version() -> str:
    """The installed version of the package."""
    return importlib.metadata.version("torchsheaf")
