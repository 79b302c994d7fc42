"""Batches: which rows come together, in what order."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from kedge.batches import ShuffledRows


def order_of(labels, together, *, batch_size=None, seed=0, epoch=0):
    rows = ShuffledRows(torch.tensor(labels), batch_size or len(labels), seed, together)
    rows.set_epoch(epoch)
    return torch.cat(list(rows)).tolist()


@given(st.lists(st.integers(0, 5), min_size=1, max_size=60), st.integers(1, 7), st.integers(0, 3))
def test_every_row_comes_once_and_those_of_a_class_in_groups(labels, together, seed):
    order = order_of(labels, together, seed=seed)
    assert sorted(order) == list(range(len(labels)))
    found = [labels[row] for row in order]
    for label in {*labels}:
        # Cut greedily, a class falls into no more runs than it has groups.
        runs, taken = 0, 0
        for previous, own in zip([None, *found], found, strict=False):
            if own != label:
                continue
            fresh = previous != label or taken == together
            runs, taken = runs + fresh, 1 if fresh else taken + 1
        assert runs <= 2 * -(-found.count(label) // together)
        if found.count(label) % together == 0:
            assert runs == found.count(label) // together


def test_groups_are_drawn_anew_every_epoch_and_alike_again():
    labels = [row % 10 for row in range(80)]
    first, second = (order_of(labels, 4, epoch=epoch) for epoch in (0, 1))
    assert first != second
    assert first == order_of(labels, 4, epoch=0)
    assert first != order_of(labels, 4, seed=1)
    for order in (first, second):
        groups = [order[start : start + 4] for start in range(0, 80, 4)]
        assert all(len({labels[row] for row in group}) == 1 for group in groups)
    partners = [{frozenset(order[start : start + 4]) for start in range(0, 80, 4)} for order in (first, second)]
    assert not partners[0] & partners[1]


def test_a_batch_holds_pairs_of_many_classes_only_where_they_come_together():
    labels = [row % 100 for row in range(2000)]
    alone = {
        together: sum(
            [labels[row] for row in batch].count(label) == 1
            for batch in torch.tensor(order_of(labels, together, batch_size=40)).split(40)
            for label in {labels[row] for row in batch}
        )
        for together in (1, 4)
    }
    assert alone[4] == 0
    assert alone[1] > 1000


def test_a_last_batch_that_is_not_full_is_left_out():
    assert len(order_of([0, 1] * 5, 2, batch_size=4)) == 8
