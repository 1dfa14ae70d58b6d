"""The table of rules: what each ATen operation is, and how to linearise it cheaply.

One file per family; an operation without an entry makes the model unsupported.
"""

from torchsheaf.network.rules.rule import Kind as Kind
from torchsheaf.network.rules.rule import Rule as Rule
from torchsheaf.network.rules.rule import Site as Site
from torchsheaf.network.rules.table import forget_rule as forget_rule
from torchsheaf.network.rules.table import functional as functional
from torchsheaf.network.rules.table import known_operations as known_operations
from torchsheaf.network.rules.table import operation_called as operation_called
from torchsheaf.network.rules.table import overload as overload
from torchsheaf.network.rules.table import rule_for as rule_for
from torchsheaf.network.rules.table import store_rule as store_rule
