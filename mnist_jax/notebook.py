"""A trained run, as notebooks want it: `mnist_jax.load`."""

import functools
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from mnist_jax import files
from mnist_jax.data import images
from mnist_jax.errors import UserError
from mnist_jax.inference.restored import RestoredModel
from mnist_jax.workdir.comparison import FinishedRun, read_run
from mnist_jax.workdir.metrics_log import read_metrics
from mnist_jax.workdir.results import format_result


class Run(RestoredModel):
    """What a run has learned, and how it went: predictions, results, figures."""

    @property
    def config(self) -> Any:
        """The config, a ConfigDict."""
        return self.plan.config

    @property
    def metrics(self) -> list[dict[str, float]]:
        """The rows of metrics.csv: a dict an epoch."""
        return read_metrics(self.workdir)

    @property
    def result(self) -> dict[str, Any]:
        """The evaluation on the test split: what eval.json holds."""
        return self._finished.result

    @functools.cached_property
    def _finished(self) -> FinishedRun:
        found = read_run(self.workdir, files.printable(self.workdir.name))
        step = int(self.snapshot.state.step)
        if found.result['step'] != step:
            raise UserError(
                f'the result in {str(self.workdir)!r} is of step {found.result["step"]}, and this is {step}'
            )
        return found

    def table(self) -> str:
        """The result as text for people."""
        return format_result(self.result)

    def image(self, path: str | Path) -> np.ndarray:
        """An image file, scaled and centred as the images are that this run was trained on: uint8 HxWx1."""
        try:
            return self.frame(images.read(Path(path))).image
        except ValueError as error:
            raise UserError(f'image {str(path)!r}: {error}') from None

    def figures(self) -> dict[str, Figure]:
        """The figures of the report, by name; they need the data set."""
        from mnist_jax.report.run import make_figures  # Not before: it takes half a second.

        return {name: picture.figure for name, picture in make_figures(self._finished, self).items()}

    def __repr__(self) -> str:
        return f'<run {str(self.workdir)!r}: {self.config.model.name}, step {int(self.snapshot.state.step):,}>'
