"""Small-image classification in JAX and Flax.

In a notebook, `mnist_jax.load` opens a trained run:

    import mnist_jax

    run = mnist_jax.load('runs/cnn')
    run.predict([run.image('seven.png')])

`mnist_jax.study` trains runs that differ in some fields, and compares them. `help(mnist_jax.load)` and
`help(mnist_jax.study)` show everything that they offer. The command line is `python -m mnist_jax.main --help`.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ml_collections import ConfigDict

    from mnist_jax.notebook import Run
    from mnist_jax.studies.finished_study import FinishedStudy


def load(workdir: str | Path | None = None, step: str | int | None = None) -> 'Run':
    """Loads a trained run, to predict with its model and to look at its results.

    Example:

        run = mnist_jax.load('runs/cnn')
        image = run.image('seven.png')         # scaled and centered like the training images, uint8 HxWx1
        run.predict([image])                   # class probabilities of N images, float32 NxK
        run.class_names                        # the K classes, in the same order
        run.logits(image[None])                # the logits NxK as a JAX function, for jax.jit and jax.grad
        run.feature_maps(image)['Conv_0']      # the output of a layer, HxWxC
        run.filters()                          # the kernel of the first layer
        run.params                             # all parameters: nested dicts of arrays

        run.metrics                            # one dict per epoch, for pandas.DataFrame
        run.result['accuracy']                 # the evaluation on the test split, as in eval.json
        run.result['statistics']['by_class']   # precision, recall and more for each class
        print(run.table())                     # the same as text, with the confusion matrix
        run.figures()['confusion_matrix']      # matplotlib figures; these need the dataset
        run.config.model                       # the config, a ConfigDict

    Only `figures` needs the dataset. `result`, `table` and `figures` raise a `UserError` unless the run was evaluated
    at the loaded step. Training evaluates the run at the default `step` when it ends.

    Args:
      workdir: The directory of the run. None loads the model that comes with the package, which reads handwritten
        digits; it has no metrics, no steps and no figures.
      step: The checkpoint to load: 'latest', 'best' (the best epoch by the metric `early_stopping.monitor` of the
        config), or a step number. None loads the checkpoint that training ended with: the best one if the config sets
        `early_stopping.restore_best`, otherwise the latest. A workdir keeps the two latest checkpoints and the best.

    Returns:
      A `mnist_jax.notebook.Run`, with the parameters in host memory. Predictions run on one device.

    Raises:
      mnist_jax.errors.UserError: `workdir` is not the directory of a trained run, or it has no checkpoint of `step`.
    """
    from mnist_jax.files import user_path
    from mnist_jax.inference.packaged import PACKAGED  # Importing JAX and the rest takes two seconds.
    from mnist_jax.notebook import Run

    directory = PACKAGED if workdir is None else user_path(workdir, 'workdir').absolute()
    return Run.load(directory, None if step is None else str(step))


def study(
    config: 'ConfigDict | str | Path',
    vary: Mapping[str, Any],
    workdir: str | Path,
    *,
    search: str | Mapping[str, Any] = 'grid',
    trials: int | None = None,
    seeds: int = 1,
    reduction: int = 0,
    workers: int | None = None,
) -> 'FinishedStudy':
    """Trains runs that differ in some config fields and in the seed, and compares them by validation.

    Example:

        study = mnist_jax.study(
            'configs/digits_cnn.py',
            {'optimizer.learning_rate': 'log_uniform(1e-4, 1e-2)', 'model.hidden': [(32,), (64,)]},
            'runs/rates',
            search='random',
            trials=8,
            seeds=5,
        )
        print(study.table())        # the points, the best first: mean and deviation over the seeds
        print(study.differences())  # differences from the best point, with intervals and p-values
        study.points                # one dict per point, for pandas.DataFrame
        study.trials                # one dict per run
        study.best['workdirs']      # the runs of the best point, for mnist_jax.load
        study.figures()['slices']   # matplotlib figures
        study.test()                # evaluates the best point on the test split: once, at the end

    Calling it again resumes the study in `workdir`, which may get more trials and seeds.

    Args:
      config: The config that the runs start from, or its file. Its `early_stopping.monitor` is the metric by which
        points are compared, and must be one of validation.
      vary: The values of each field by dotted name: a list, a domain of `mnist_jax.studies.space` such as
        `log_uniform(1e-4, 1e-2)`, or the text that `--vary` takes.
      workdir: The directory of the study.
      search: How points are chosen: 'grid', 'random', 'quasi_random' or 'optuna'; or a dict with this `name` and the
        arguments of the search, such as `{'name': 'optuna', 'sampler': 'gp'}`.
      trials: The number of points; a grid has all.
      seeds: The number of runs of each point.
      reduction: Train only the best 1 / `reduction` of the points further in each round of successive halving; 0 trains
        all to the end.
      workers: The number of processes; None for one per core on a CPU, or one if a part of the config is your own.

    Returns:
      A `mnist_jax.studies.finished_study.FinishedStudy`.

    Raises:
      mnist_jax.errors.UserError: the config, a field or a value is invalid, or `workdir` holds something else.
      mnist_jax.errors.Interrupted: the study was stopped; all finished trials are kept.
    """
    from mnist_jax.studies.finished_study import run_study

    return run_study(config, vary, workdir, search, trials, seeds, reduction, workers)
