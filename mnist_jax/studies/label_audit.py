"""Finds training examples with wrong labels: cross-validates a run, and compares its predictions with the labels."""

import csv
import io
from pathlib import Path

import numpy as np
from absl import logging

from mnist_jax import files, text_tables
from mnist_jax.config import ConfigDict
from mnist_jax.data.records import Split
from mnist_jax.errors import UserError
from mnist_jax.inference.restored import RestoredModel
from mnist_jax.learning.label_errors import LabelSuspects, find_label_suspects
from mnist_jax.report import figures, image_grids
from mnist_jax.report.image_grids import PredictedExamples
from mnist_jax.studies.cross_validation import cross_validate
from mnist_jax.training.plan import make_plan

SHOWN_ROWS = 20  # rows of the table; label_suspects.csv has all


def audit_labels(config: ConfigDict, workdir: str | Path) -> LabelSuspects:
    """Cross-validates `config` in `workdir`, and lists the training examples with suspicious labels.

    Resumes a previous cross-validation. Each example is predicted by the model of the fold that it was left out of.
    Writes `label_suspects.csv` and `label_suspects.png`, and prints a table.

    Args:
      config: The config; `config.folds` is at least 2. The folds replace its validation examples.
      workdir: Where to write; the runs of the folds are in its directory `folds`.

    Returns:
      The suspects. An index counts the examples of `config.dataset.train`.
    """
    config = audit_config(config)
    workdir = files.user_path(workdir, '--workdir')
    logging.info('Cross-validating with %d folds to find wrong labels', config.folds)
    cross_validate(config, workdir / 'folds')
    examples = out_of_fold(workdir / 'folds', config.folds)
    suspects = find_label_suspects(examples.probabilities, examples.label)
    header, rows = image_grids.suspect_rows(examples, suspects)
    text = io.StringIO()
    csv.writer(text, lineterminator='\n').writerows([header, *rows])
    files.write_text(workdir / 'label_suspects.csv', text.getvalue())
    figure = image_grids.label_suspects(examples, suspects)
    if figure is not None:
        files.write_bytes(workdir / 'label_suspects.png', figures.to_png(figure))
    title = (
        f'another class is suggested for {len(rows):,} of {examples.size:,} training examples, for '
        f'{suspects.confident.sum():,} of them confidently; the most suspicious first'
    )
    table = text_tables.titled([header, *rows[:SHOWN_ROWS]])
    print('\n'.join([title, '', *table, '', f'All of them: {workdir / "label_suspects.csv"}']), flush=True)
    return suspects


def audit_config(config: ConfigDict) -> ConfigDict:
    """Returns the config of the cross-validation: without other validation examples than those of its folds.

    Raises:
      UserError: it is invalid.
    """
    if config.fold:
        raise UserError(f'config.fold must be 0 for --mode=explore, which trains all folds, got {config.fold}')
    config = config.copy_and_resolve_references()
    config.dataset.validation, config.dataset.validation_fraction = '', 0.0
    one_fold = config.copy_and_resolve_references()
    one_fold.fold = 1
    make_plan(one_fold)
    return config


def out_of_fold(workdir: Path, folds: int) -> PredictedExamples:
    """Returns the training examples of a cross-validation, each with the prediction of the fold that it was not in."""
    parts, positions = [], []
    for fold in range(1, folds + 1):
        model = RestoredModel.load(workdir / f'fold-{fold}')
        source = model.plan.source
        split = source.split('validation')
        assert isinstance(split, Split)  # `explore` requires `config.dataset.in_memory`.
        parts.append((*split, model.predict(split.image, allow_dark=True)))
        positions.append(source.positions_in_train('validation'))
    order = np.argsort(np.concatenate(positions))
    images, labels, probabilities = (np.concatenate(arrays)[order] for arrays in zip(*parts, strict=True))
    return PredictedExamples(lambda index: images[index], labels, probabilities, model.class_names)
