"""The words that options choose from, written out: help and usage errors do not import torch.

The parts that give them a meaning have them too; a test keeps both the same.
"""

EXAMPLES = ("digits-conv", "digits-mlp", "digits-residual", "paraboloid")
TASKS = ("paraboloid", "saddle", "circular", "blobs", "digits")
FORMS = ("unfused", "fused")
HOLDS = ("auto", "one-hot", "class mean")
METHODS = ("auto", "exact", "euler", "ode")
RULES = ("equilibrium", "first-order", "edge", "recursive")
NORMS = ("max", "rms", "relative")
LOSSES = ("l2", "l1", "huber", "bce", "cross_entropy")
OPTIMISERS = ("sgd", "adam")
FORMATS = ("fp64", "fp32", "tf32", "bf16", "fp16", "fp8_e4m3", "fp8_e5m2")
PROFILES = ("bytes", "h100", "stated")
DEMOS = ("feed-forward", "images", "pathological", "transformer")
