"""The trained run that `mnist_jax.load` returns to notebooks."""

import functools
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from mnist_jax import files
from mnist_jax.config import ConfigDict
from mnist_jax.errors import UserError
from mnist_jax.files import JsonObject
from mnist_jax.inference.restored import RestoredModel
from mnist_jax.workdir.finished_runs import FinishedRun, read_run_of
from mnist_jax.workdir.metrics_log import read_metrics
from mnist_jax.workdir.results import format_result


class Run(RestoredModel):
    """A trained run: its model, its metrics and its results. See `mnist_jax.load`."""

    @property
    def config(self) -> ConfigDict:
        """The config of the run."""
        return self.plan.config

    @property
    def metrics(self) -> list[dict[str, float]]:
        """The rows of metrics.csv, one dict per epoch."""
        return read_metrics(self.workdir)

    @property
    def result(self) -> JsonObject:
        """The evaluation on the test split, as in eval.json."""
        return self._finished.result

    @functools.cached_property
    def _finished(self) -> FinishedRun:
        return read_run_of(self.snapshot, self.workdir)

    def table(self) -> str:
        """Returns the result as text: accuracy, statistics by class, and the confusion matrix."""
        return format_result(self.result)

    def image(self, path: str | Path) -> np.ndarray:
        """Reads an image file, and prepares it like the training images.

        Returns:
          The image, uint8 HxWxC, for `predict` and `feature_maps`.

        Raises:
          UserError: the file is not an image that can be read, or the image is blank.
        """
        try:
            return self.read_image(files.user_path(path, 'path')).image
        except ValueError as error:
            raise UserError(f'image {str(path)!r}: {error}') from None

    def figures(self) -> dict[str, Figure]:
        """Returns the figures of the report by name; needs the dataset."""
        from mnist_jax.report.run_page import make_figures  # Importing it takes half a second.

        return {name: report_figure.figure for name, report_figure in make_figures(self._finished, self).items()}

    def __repr__(self) -> str:
        return f'<Run {str(self.workdir)!r}: {self.config.model.name}, step {int(self.snapshot.state.step):,}>'
