"""Small-image classification in JAX and Flax.

From a notebook, `load` gives what a run has learned:

    import mnist_jax

    run = mnist_jax.load('runs/cnn')     # or load('runs/cnn', step='best')
    run.predict(images)                  # NxK probabilities of uint8 images NxHxW
    run.predict([run.image('seven.png')])
    run.metrics                          # a dict an epoch, for pandas.DataFrame
    print(run.table())                   # accuracy, statistics by class, confusion matrix
    run.result['statistics']             # the same as numbers
    run.figures()['confusion_matrix']    # matplotlib figures by name
    run.feature_maps(image), run.filters(), run.params
"""

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mnist_jax.notebook import Run


def load(workdir: str | Path, step: str | int | None = None) -> 'Run':
    """The run in `workdir`, with the parameters that it ends with, or those of `step`: 'best', 'latest' or a number."""
    from mnist_jax.notebook import Run  # JAX and what else this needs take two seconds.

    return Run.load(Path(workdir).absolute(), None if step is None else str(step))
