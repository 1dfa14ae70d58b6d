"""Two processes under torchrun against one process on the same global batch."""

import subprocess
import sys
from pathlib import Path

import torch

SCRIPT = """
import sys
import torch
import torch.distributed as dist
from torch import nn
from torchsheaf.train import EdgeRule, EquilibriumRule, FirstOrderRule, RecursiveRule, SheafTrainer

if "RANK" in __import__("os").environ:
    dist.init_process_group("gloo")
rank = dist.get_rank() if dist.is_initialized() else 0
world = dist.get_world_size() if dist.is_initialized() else 1
torch.set_num_threads(1)
rules = {
    "first-order": lambda: FirstOrderRule(),
    "edge": lambda: EdgeRule(group=8),
    "equilibrium": lambda: EquilibriumRule(tol=1e-6, solver="block descent"),
}
found = {}
for name, rule in rules.items():
    g = torch.Generator().manual_seed(3)
    net = nn.Sequential(nn.Linear(4, 12), nn.ReLU(), nn.Linear(12, 3)).double()
    with torch.no_grad():
        for p in net.parameters():
            p.copy_(0.5 * torch.randn(p.shape, generator=g, dtype=torch.float64))
    net = net.float() if name != "equilibrium" else net
    loss = "l2" if name == "equilibrium" else "cross_entropy"
    trainer = SheafTrainer(net, loss=loss, rule=rule())
    optimiser = torch.optim.SGD(net.parameters(), lr=0.3, momentum=0.5)
    for _ in range(20):
        x = torch.randn(48, 4, generator=g, dtype=torch.float64)
        y = torch.randint(0, 3, (48,), generator=g)
        y = y if loss == "cross_entropy" else nn.functional.one_hot(y, 3).double()
        # Unequal shards, whole groups: 16 and 32 samples.
        mine = slice(0, 48) if world == 1 else (slice(0, 16), slice(16, 48))[rank]
        trainer.local_gradients(x[mine].to(net[0].weight.dtype), y[mine])
        optimiser.step()
    found[name] = torch.cat([p.detach().double().flatten() for p in net.parameters()])
if world > 1:
    try:
        SheafTrainer(net, loss="l2", rule=RecursiveRule()).local_gradients(x, y)
        found["refused"] = torch.tensor(0)
    except ValueError as error:
        found["refused"] = torch.tensor(int("cannot be reduced" in str(error)))
torch.save(found, f"{sys.argv[1]}.{rank}.of.{world}")
"""


def test_two_processes_equal_one_after_twenty_steps(tmp_path: Path) -> None:
    script = tmp_path / "steps.py"
    script.write_text(SCRIPT)
    out = tmp_path / "weights"
    runner = ["-m", "torch.distributed.run", "--nproc-per-node=2", "--standalone"]
    subprocess.run([sys.executable, str(script), str(out)], check=True, timeout=900)
    two = subprocess.run(
        [sys.executable, *runner, str(script), str(out)],
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert two.returncode == 0, two.stderr[-2000:]
    whole = torch.load(f"{out}.0.of.1", weights_only=True)
    for rank in (0, 1):
        part = torch.load(f"{out}.{rank}.of.2", weights_only=True)
        assert bool(part.pop("refused"))
        assert part.keys() == whole.keys() == {"first-order", "edge", "equilibrium"}
        for name, expected in whole.items():
            assert float((part[name] - expected).abs().max()) <= 1e-5, name
    for weights in whole.values():
        assert float(weights.abs().max()) > 0.1
