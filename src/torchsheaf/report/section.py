"""One section of the page: a title and its HTML."""

from dataclasses import dataclass

from torchsheaf.report.markup import escape


@dataclass(frozen=True)
class Section:
    """`name` is the anchor; `title` plain text; `body` finished HTML."""

    name: str
    title: str
    body: str

    def html(self) -> str:
        """The section as it stands on the page."""
        return (
            f'<section id="{escape(self.name)}" aria-labelledby="{escape(self.name)}-title">\n'
            f'<h2 id="{escape(self.name)}-title">{escape(self.title)}</h2>\n{self.body}</section>\n'
        )


def absent(name: str, title: str, reason: str) -> Section:
    """A section that could not be had, with the reason."""
    body = f'<p class="absent">Not on this page. {escape(reason)}</p>\n'
    return Section(name, title, body)
