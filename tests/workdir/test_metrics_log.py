"""The log of a run's metrics."""

import pytest

from mnist_jax.errors import UserError
from mnist_jax.learning.callbacks import VALIDATION_METRICS
from mnist_jax.workdir.metrics_log import MetricsLog, read_metrics


def row(epoch):
    numbers = {'train_loss': 0.5, 'train_accuracy': 0.9, 'learning_rate': 0.1, 'seconds': 2.0, 'images_per_second': 9.0}
    return {'epoch': epoch, 'step': 10 * epoch, **numbers, **dict.fromkeys(VALIDATION_METRICS)}


def test_rows_of_no_epoch_are_damaged(tmp_path):
    log = MetricsLog(tmp_path, epochs=2, step=0)
    log.write_epoch(row(1))
    path = tmp_path / 'metrics.csv'
    path.write_text(path.read_text().replace('\n1,', '\n0,'))
    with pytest.raises(UserError, match='is damaged'):
        read_metrics(tmp_path)


def test_rows_that_could_not_be_written_are_written_at_the_end(tmp_path, caplog):
    log = MetricsLog(tmp_path, epochs=2, step=0)
    log.write_epoch(row(1))
    path = tmp_path / 'metrics.csv'
    path.unlink()
    path.mkdir()  # so that it cannot be replaced
    log.write_epoch(row(2))
    assert 'metrics.csv cannot be written' in caplog.text
    path.rmdir()
    log.complete()
    assert [saved['epoch'] for saved in read_metrics(tmp_path)] == [1, 2]
    path.unlink()
    log.complete()  # Nothing is left to write.
    assert not path.exists()
