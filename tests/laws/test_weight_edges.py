"""A weight edge as a table of rows: its products are those of the layer, whatever its geometry."""

import pytest
import torch
from torch import nn

import torchsheaf as ts
from tests.reference.networks import fill, randn

LAYERS = {
    "linear": (nn.Linear(5, 3), (5,)),
    "conv1d": (nn.Conv1d(3, 2, 3, stride=2, padding=1, dilation=2), (3, 11)),
    "conv2d, positions in runs": (nn.Conv2d(1, 4, 3, padding=1), (1, 6, 9)),
    "conv2d, channels in runs": (nn.Conv2d(6, 4, 3, padding=1), (6, 4, 5)),
    "conv2d, uneven": (
        nn.Conv2d(3, 2, (2, 3), stride=(1, 2), padding=(0, 2), dilation=(3, 1)), (3, 7, 8),
    ),
    "conv3d": (nn.Conv3d(2, 3, 2, stride=2, padding=1), (2, 3, 4, 5)),
}  # fmt: skip


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("ones", [False, True])
def test_rows_and_spread_give_the_layer_and_its_gradient(name: str, ones: bool) -> None:
    layer, shape = LAYERS[name]
    net = fill(nn.Sequential(layer), 1)
    x = randn(2, 4, *shape)
    sheaf = ts.encode(net, x)
    (edge,) = (e.weights for e in sheaf.edges.values())
    assert edge is not None
    values, network = sheaf.forward(x), sheaf.network
    y = net(x)
    g = randn(3, *y.shape)
    net.zero_grad()
    y.backward(g)
    rows, forces = edge.rows(network, values, ones=ones), edge.spread(g)
    step = forces.mT @ rows
    if ones:
        assert torch.allclose(step[:, -1], layer.bias.grad, atol=1e-12)
        step = step[:, :-1]
    assert torch.allclose(edge.stored(step, network), layer.weight.grad, atol=1e-12)
    # row by row: W a + b is what the layer gives there
    kernel = layer.weight.detach()
    columns = (kernel.movedim(1, -1) if kernel.ndim > 2 else kernel).flatten(1)
    image = rows[:, : columns.shape[1]] @ columns.mT + layer.bias.detach()
    assert torch.allclose(image, edge.spread(y.detach()), atol=1e-12)


def test_a_traced_forward_pass_is_the_forward_pass_and_its_maps() -> None:
    net = fill(
        nn.Sequential(
            nn.Conv2d(1, 3, 3, padding=1), nn.GELU(), nn.MaxPool2d(2), nn.Conv2d(3, 4, 2),
            nn.Hardtanh(), nn.AvgPool2d(2, 1), nn.Flatten(), nn.Linear(4, 2),
        ),
        4,
    )  # fmt: skip
    x = randn(5, 3, 1, 6, 6)
    sheaf = ts.encode(net, x)
    values, maps = sheaf.trace(x)
    plain, wanted = sheaf.forward(x), sheaf.linearise(sheaf.forward(x))
    for name in plain:
        assert torch.equal(values[name], plain[name]), name
    assert set(maps) == set(wanted) - {next(iter(sheaf.edges))}
    for name, found in maps.items():
        g = randn(6, *values[name].shape)
        for parent, pulled in wanted[name].pull(g).items():
            assert torch.allclose(found.pull(g)[parent], pulled, atol=1e-14), name
