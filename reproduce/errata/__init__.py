"""Every false statement listed in docs/errata.md, shown false by a few lines that anyone can run.

`python -m reproduce.errata NAME` runs one entry, `python -m reproduce.errata` runs all. The scripts
need numpy and torch only; where a formula is wrong, the wrong formula is what they run.
"""
