"""One self-contained HTML page about a network, for a reader who has not read the paper.

`analyse` collects the results, `render` writes the page, `report` does both. The page needs no
network and runs no script; every string of the user's is escaped.
"""

from torchsheaf.report.analysis import Analysis as Analysis
from torchsheaf.report.analysis import analyse as analyse
from torchsheaf.report.analysis import beside as beside
from torchsheaf.report.headlines import headlines as headlines
from torchsheaf.report.page import render as render
from torchsheaf.report.page import report as report
