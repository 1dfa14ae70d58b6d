"""Doctests on the site: an example in a docstring is shown as code, whatever stands around it."""

import re

import griffe

# A run of lines that begins with a prompt and ends at the next blank line.
EXAMPLE = re.compile(r"^(?P<indent> *)>>> .*(?:\n(?! *$).*)*", re.MULTILINE)


class Prompts(griffe.Extension):
    """Put a fence around every example that is not under an "Examples:" heading."""

    def on_object(self, *, obj: griffe.Object, **_: object) -> None:
        """Called by griffe for each module, class, function and attribute it has read."""
        if obj.docstring and "Examples:" not in obj.docstring.value:
            obj.docstring.value = EXAMPLE.sub(_fenced, obj.docstring.value)


def _fenced(match: re.Match[str]) -> str:
    indent = match["indent"]
    return f"{indent}```pycon\n{match[0]}\n{indent}```"
