"""Small-image classification in JAX and Flax.

In a notebook, `mnist_jax.load` opens a trained run:

    import mnist_jax

    run = mnist_jax.load('runs/cnn')
    run.predict([run.image('seven.png')])

`help(mnist_jax.load)` shows everything that a run offers. The command line is `python -m mnist_jax.main --help`.
"""

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mnist_jax.notebook import Run


def load(workdir: str | Path, step: str | int | None = None) -> 'Run':
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
      workdir: The directory of the run.
      step: The checkpoint to load: 'latest', 'best' (the best epoch by the metric `early_stopping.monitor` of the
        config), or a step number. None loads the checkpoint that training ended with: the best one if the config sets
        `early_stopping.restore_best`, otherwise the latest. A workdir keeps the two latest checkpoints and the best.

    Returns:
      A `mnist_jax.notebook.Run`, with the parameters in host memory. Predictions run on one device.

    Raises:
      mnist_jax.errors.UserError: `workdir` is not the directory of a trained run, or it has no checkpoint of `step`.
    """
    from mnist_jax.files import user_path
    from mnist_jax.notebook import Run  # Importing JAX and the rest takes two seconds.

    return Run.load(user_path(workdir, 'workdir').absolute(), None if step is None else str(step))
