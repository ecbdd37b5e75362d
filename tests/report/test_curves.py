"""Tests the marks on the learning curves, for made-up metrics."""

import math

from ml_collections import ConfigDict

from mnist_jax.report import curves
from mnist_jax.report.figures import to_svg
from mnist_jax.workdir.finished_runs import FinishedRun


def run_with_metrics(config, accuracies, learning_rates):
    """Returns a run with these validation accuracies and learning rates."""
    rows = [
        {
            'epoch': index + 1.0,
            'step': 10.0 * (index + 1),
            'train_loss': 1 / (index + 1),
            'train_accuracy': accuracy,
            'learning_rate': learning_rate,
            'validation_accuracy': accuracy,
            'validation_loss': 1 - accuracy,
            'seconds': 1.0,
            'images_per_second': 100.0,
        }
        for index, (accuracy, learning_rate) in enumerate(zip(accuracies, learning_rates, strict=True))
    ]
    return FinishedRun('made up', None, config, {}, rows)


def test_curves_mark_best_epoch_learning_rate_change_and_early_stop(small):
    config = small(epochs=9)
    config.early_stopping.patience = 2
    config.early_stopping.min_delta = 0.05
    run = run_with_metrics(config, [0.5, 0.7, 0.74, 0.72], [0.1, 0.1, 0.05, 0.05])
    # Epoch 3 improves by less than min_delta, so epoch 2 is the best.
    assert curves.best_epoch(run) == 2 and curves.learning_rate_changes(run) == [3] and run.stopped_early
    figure = curves.learning_curves(run)
    assert figure.about.endswith(
        'The best epoch by validation accuracy is epoch 2. The run stopped early, after epoch 4 of 9. '
        'The learning rate was reduced at epoch 3.'
    )
    assert figure.tooltips['point-validation_accuracy-3'] == 'epoch 3, validation: 0.74'
    labels = [text.get_text() for text in figure.figure.axes[0].get_legend().get_texts()]
    assert labels == ['training', 'validation', 'best epoch', 'learning rate reduced', 'stopped early']


def test_curves_mark_epochs_whose_loss_is_not_finite(small):
    run = run_with_metrics(small(epochs=4), [0.5, 0.6, 0.6, 0.7], [0.1] * 4)
    run.epochs[1]['validation_loss'], run.epochs[3]['validation_loss'] = math.nan, math.inf
    figure = curves.learning_curves(run)
    assert 'The validation loss of epochs 2, 4 is not finite.' in figure.about
    assert figure.tooltips['point-validation_loss-2'] == 'epoch 2, validation: nan'
    assert figure.tooltips['point-validation_loss-4'] == 'epoch 4, validation: inf'
    assert figure.tooltips['point-validation_loss-3'] == 'epoch 3, validation: 0.4'
    for row in run.epochs:
        row['validation_loss'] = math.nan
    svg = to_svg(curves.learning_curves(run))
    assert all(f'point-validation_loss-{epoch}' in svg for epoch in (1, 2, 3, 4))
    assert to_svg(curves.curves_of_runs([run]))


def test_run_without_callbacks_has_a_best_epoch_and_no_early_stop(small):
    run = run_with_metrics(small(epochs=2), [0.5, 0.4], [0.1, 0.1])
    assert curves.best_epoch(run) == 1 and not run.stopped_early


def test_an_interrupted_run_has_not_stopped_early(small):
    config = small(epochs=9, early_stopping__patience=3)
    run = run_with_metrics(config, [0.5, 0.7, 0.74, 0.72], [0.1] * 4)
    assert not run.stopped_early and 'stopped early' not in curves.learning_curves(run).about


def test_losses_of_different_functions_are_not_drawn_into_one_figure(small):
    squared = run_with_metrics(small(loss=ConfigDict({'name': 'mean_squared_error'})), [0.5, 0.6], [0.1, 0.1])
    run = run_with_metrics(small(), [0.5, 0.6], [0.1, 0.1])
    for runs, title in (([run, run], 'training loss'), ([run, squared], 'training accuracy')):
        figure = curves.curves_of_runs(runs)
        assert [axis.get_ylabel() for axis in figure.figure.axes] == [title, 'validation accuracy']
        assert ('the runs minimize different functions' in figure.about) == (title == 'training accuracy')
