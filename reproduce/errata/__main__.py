"""`python -m reproduce.errata [NAME ...]`: NAME is an entry or a prefix such as lab12."""

import argparse
import sys

from . import authors, chapters, lab12, lab14, labs, precision_claims, precision_rule

FILES = (lab12, lab14, labs, chapters, authors, precision_rule, precision_claims)
ENTRIES = {entry.name: entry for file in FILES for entry in file.REGISTER.entries}


def chosen(names: list[str]) -> list[str]:
    """The entries meant by a list of names or prefixes; an unknown one is an error."""
    found = []
    for name in names:
        hits = [key for key in ENTRIES if key == name or key.startswith(f"{name}.")]
        if not hits:
            raise SystemExit(f"no erratum is called {name!r}; --list shows the names")
        found += hits
    return found or list(ENTRIES)


def main(arguments: list[str] | None = None) -> int:
    """Run the entries asked for; 0 if every claim is refuted, 1 otherwise."""
    parser = argparse.ArgumentParser(prog="reproduce.errata", description=__doc__)
    parser.add_argument("names", nargs="*", help="entry or prefix; all of them if left out")
    parser.add_argument("--list", action="store_true", help="print the names and claims only")
    options = parser.parse_args(arguments)
    if options.list:
        print("\n".join(f"{e.name:24} {e.claim}" for e in ENTRIES.values()))
        return 0
    code = 0
    for name in chosen(options.names):
        text, refuted = ENTRIES[name].report()
        print(text)
        code |= not refuted
    return int(code)


if __name__ == "__main__":
    sys.exit(main())
