"""Tests that batches contain every example once per epoch, in an order that depends only on (seed, epoch)."""

import numpy as np
import pytest

from mnist_jax.data import batches
from mnist_jax.data.records import Split
from mnist_jax.errors import UserError


class FakeStream:
    """Examples that `batches` reads in the background, because they are not a `Split`."""

    def __init__(self, split):
        self._split, self.size = split, split.size

    def take(self, indices):
        return self._split.take(indices)


SPLIT = Split(np.arange(10, dtype=np.uint8).reshape(10, 1, 1, 1), np.arange(10, dtype=np.int32))


def test_an_epoch_contains_every_example_once_and_pads_the_last_batch():
    epoch = list(
        batches.train_batches(SPLIT, batches.permutation(0, 0, 10), batch_size=4, padded_size=6, rows=slice(0, 6))
    )
    assert [batch['mask'].tolist() for batch in epoch] == [[1, 1, 1, 1, 0, 0]] * 2 + [[1, 1, 0, 0, 0, 0]]
    index = np.concatenate([batch['index'][batch['mask'] == 1] for batch in epoch])
    assert sorted(index) == list(range(10)) and list(index) != list(range(10))
    for batch in epoch:
        real = batch['mask'] == 1
        np.testing.assert_array_equal(batch['image'][real].ravel(), batch['index'][real])
        np.testing.assert_array_equal(batch['label'][real], batch['index'][real])
        assert {name: rows.dtype.name for name, rows in batch.items()} == {
            'image': 'uint8', 'label': 'int32', 'mask': 'float32', 'index': 'int32',
        }  # fmt: skip


def test_the_order_is_a_function_of_seed_and_epoch():
    orders = {(seed, epoch): tuple(batches.permutation(seed, epoch, 50)) for seed in (0, 1) for epoch in (0, 1)}
    assert len(set(orders.values())) == 4
    assert orders[0, 1] == tuple(batches.permutation(0, 1, 50))


def test_a_balanced_order_has_equally_many_examples_of_each_class():
    labels = np.array([0, 2, 0, 0, 2, 0, 0, 0, 0])  # 7 examples of class 0, 2 of class 2
    epochs = [batches.balanced_order(labels, 0, epoch) for epoch in range(7)]
    for epoch in epochs:
        assert epoch.dtype == np.int32
        assert np.bincount(labels[epoch]).tolist() == [5, 0, 4]
    used = np.bincount(np.concatenate(epochs), minlength=9)
    assert used[labels == 0].tolist() == [5] * 7  # 35 examples of 7
    assert used[labels == 2].tolist() == [14] * 2  # 28 examples of 2
    used = np.bincount(np.concatenate(epochs[:3]), minlength=9)
    assert sorted(used[labels == 0]) == [2] * 6 + [3]  # 15 examples of 7
    again = batches.balanced_order(labels, 0, 3)
    assert np.array_equal(again, epochs[3])
    assert not np.array_equal(batches.balanced_order(labels, 1, 3), again)


def test_evaluation_keeps_the_order_of_the_split():
    evaluation = list(batches.eval_batches(SPLIT, batch_size=3, padded_size=3, rows=slice(0, 3)))
    assert [batch['index'].tolist() for batch in evaluation] == [[0, 1, 2], [3, 4, 5], [6, 7, 8], [9, 0, 0]]
    assert evaluation[-1]['mask'].tolist() == [1, 0, 0]


@pytest.mark.parametrize('examples', [SPLIT, FakeStream(SPLIT)])
def test_processes_load_their_rows_of_the_same_batches(examples, monkeypatch):
    monkeypatch.setattr(batches, 'READ_SIZE', 3)
    options = {'order': batches.permutation(0, 0, 10), 'batch_size': 4, 'padded_size': 6}
    whole = list(batches.train_batches(SPLIT, **options, rows=slice(0, 6)))
    per_process = [list(batches.train_batches(examples, **options, rows=slice(n, n + 2))) for n in (0, 2, 4)]
    for batch, *parts in zip(whole, *per_process, strict=True):
        for name, rows in batch.items():
            np.testing.assert_array_equal(np.concatenate([part[name] for part in parts]), rows)


@pytest.mark.parametrize('examples', [SPLIT, FakeStream(SPLIT)])
def test_an_epoch_can_be_resumed_at_any_batch(examples):
    options = {'order': batches.permutation(0, 0, 10), 'batch_size': 4, 'padded_size': 4, 'rows': slice(0, 4)}
    whole = [batch['index'].tolist() for batch in batches.train_batches(SPLIT, **options)]
    for first in range(4):
        resumed = batches.train_batches(examples, **options, first=first)
        assert [batch['index'].tolist() for batch in resumed] == whole[first:]


def test_errors_while_reading_ahead_are_raised():
    class DamagedStream(FakeStream):
        def take(self, indices):
            if 7 in indices:
                raise UserError('example 7 is damaged')
            return super().take(indices)

    with pytest.raises(UserError, match='example 7 is damaged'):
        list(batches.eval_batches(DamagedStream(SPLIT), 2, 2, slice(0, 2)))


def test_steps_per_epoch():
    assert [batches.steps_per_epoch(10, size) for size in (1, 3, 5, 10)] == [10, 4, 2, 1]


def test_padding_is_the_first_example_of_the_split():
    split = Split(SPLIT.image + 5, SPLIT.label)
    for examples in (split, FakeStream(split)):
        last = list(batches.eval_batches(examples, batch_size=4, padded_size=6, rows=slice(0, 6)))[-1]
        assert last['image'].ravel().tolist() == [13, 14, 5, 5, 5, 5] and last['label'].tolist() == [8, 9, 0, 0, 0, 0]
    # The second of two processes has no example of the last batch.
    last = list(batches.eval_batches(split, batch_size=8, padded_size=8, rows=slice(4, 8)))[-1]
    assert last['image'].ravel().tolist() == [5] * 4 and last['mask'].tolist() == [0] * 4


def test_examples_that_are_drawn_again_are_numbered():
    order = np.array([3, 1, 3, 3, 0, 1], np.int32)
    assert batches.occurrences(order).tolist() == [0, 0, 1, 2, 0, 1]
    options = {'batch_size': 4, 'padded_size': 4, 'rows': slice(0, 4), 'replaced': True}
    epoch = list(batches.train_batches(SPLIT, order, **options))
    assert [batch['occurrence'].tolist() for batch in epoch] == [[0, 0, 1, 2], [0, 1, 0, 0]]
    (resumed,) = batches.train_batches(SPLIT, order, **options, first=1)
    assert resumed['occurrence'].tolist() == [0, 1, 0, 0] and resumed['occurrence'].dtype == np.int32
