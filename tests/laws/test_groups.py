"""Groups of columns that move together, against SciPy's connected components."""

import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from torchsheaf.harmonic.groups import join, level


@given(st.integers(0, 2**31 - 1))
def test_groups_are_the_connected_components_of_old_groups_and_windows(seed: int) -> None:
    source = torch.Generator().manual_seed(seed)
    n, batch = 15, 3
    fixed = torch.rand(batch, n, generator=source) < 0.1
    columns = torch.randint(n, (5, 3), generator=source)
    more = torch.randint(n, (4, 2), generator=source)
    chosen = torch.rand(batch, 5, 3, generator=source) < 0.6
    free = torch.arange(n).repeat(batch, 1)
    first = join(free, columns, chosen, fixed)
    leader = join(first, more, torch.ones(batch, 4, 2, dtype=torch.bool), fixed)
    for b in range(batch):
        windows = [columns[w][chosen[b, w]].tolist() for w in range(5)] + more.tolist()
        pairs = [(w[0], other) for w in windows for other in w[1:]]
        i, j = zip(*pairs, strict=True)
        graph = coo_array(([1] * len(pairs), (i, j)), shape=(n, n))
        labels = torch.as_tensor(connected_components(graph, directed=False)[1])
        # a fixed column left its group when that had been formed: it led it or stayed alone
        for column in range(n):
            head = int(leader[b, column])
            assert labels[head] == labels[column]
            assert int(leader[b, head]) == head
            if fixed[b, column]:
                assert head == column
        if not bool(fixed[b].any()):
            assert torch.equal(leader[b][:, None] == leader[b], labels[:, None] == labels)


@given(st.integers(0, 2**31 - 1))
def test_a_group_is_levelled_at_its_mean_or_at_what_is_held(seed: int) -> None:
    source = torch.Generator().manual_seed(seed)
    values = torch.randn(2, 9, generator=source, dtype=torch.float64)
    fixed = torch.rand(2, 9, generator=source) < 0.2
    columns = torch.randint(9, (3, 3), generator=source)
    everyone = torch.ones(2, 3, 3, dtype=torch.bool)
    leader = join(torch.arange(9).repeat(2, 1), columns, everyone, fixed)
    after = level(values, leader, fixed)
    for b in range(2):
        for head in leader[b].unique():
            members = leader[b] == head
            wanted = values[b, head] if fixed[b, head] else values[b, members].mean()
            torch.testing.assert_close(after[b, members], wanted.expand(int(members.sum())))
            assert bool((after[b, members] == after[b, head]).all())
