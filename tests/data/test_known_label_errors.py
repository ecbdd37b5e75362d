"""The test labels that are known to be wrong."""

import numpy as np
from digit_images import read_mnist_test

from mnist_jax.data.known_label_errors import MNIST, known_label_errors


def test_the_known_errors_of_mnist_are_labels_of_its_test_split():
    _, labels = read_mnist_test()
    assert len(MNIST) == 15 and list(MNIST) == sorted(MNIST)
    for index, error in MNIST.items():
        assert labels[index] == error.label != error.seen
    assert known_label_errors('mnist', 'test', labels) is MNIST


def test_other_data_has_no_known_errors():
    _, labels = read_mnist_test()
    changed = np.where(np.arange(10_000) == 947, 9, labels)
    assert not known_label_errors('mnist', 'test', changed)
    assert not known_label_errors('mnist', 'test', labels[:9000])
    assert not known_label_errors('mnist', 'train', labels) and not known_label_errors('fashion_mnist', 'test', labels)
