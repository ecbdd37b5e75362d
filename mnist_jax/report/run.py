"""The report of a run: how it learned, where it errs, what its layers see, and how to repeat it."""

from pathlib import Path

import numpy as np

from mnist_jax import files, text_tables
from mnist_jax.config import config_fields, default_config
from mnist_jax.errors import UserError
from mnist_jax.inference.restored import RestoredModel
from mnist_jax.models.layer_table import HEADER, table_row
from mnist_jax.report import calibration, confusion, curves, page, pictures
from mnist_jax.report.page import Section, Table
from mnist_jax.report.pictures import Examples
from mnist_jax.report.style import Picture
from mnist_jax.workdir.comparison import FinishedRun, read_run
from mnist_jax.workdir.provenance import read_provenance
from mnist_jax.workdir.results import class_rows, error_rows, mean_rows, read_predictions, read_probabilities


def write_report(trained: RestoredModel) -> Path:
    """Write the report of a finished run to `report/` in its workdir; returns the path of its page."""
    workdir = trained.workdir
    run = read_run(workdir, files.printable(workdir.resolve().name))
    if trained.snapshot.state.step != run.result['step']:
        raise UserError(
            f'{str(workdir / "eval.json")!r} is of step {run.result["step"]:,}, and the run ends with step '
            f'{trained.snapshot.state.step:,}; --mode=eval evaluates that'
        )
    if list(run.result['statistics']['by_class']) != list(trained.class_names):
        raise UserError(
            f'{str(workdir / "eval.json")!r} is damaged: its classes are others; --mode=eval writes it anew'
        )
    sections: dict[str, Section] = {**make_figures(run, trained), **_tables(run, trained)}
    title = f'{run.name}: {run.config.model.name} on {run.result["dataset"]}'
    return page.write(workdir / 'report', title, _facts(run), sections)


def make_figures(run: FinishedRun, trained: RestoredModel) -> dict[str, Picture]:
    """All figures of a run, by name."""
    examples = _examples(run, trained)
    matrix = np.array(run.result['confusion_matrix'])
    names = trained.class_names
    kernel = trained.filters()
    image = examples.image(0)
    found = {
        'learning_curves': curves.learning_curves(run) if run.epochs else None,
        'confusion_matrix': confusion.heat_maps(matrix, names),
        'flow': confusion.flow(matrix, names),
        'by_class': confusion.by_class(run.result['statistics']),
        'mistakes': pictures.mistakes(examples),
        'doubts': pictures.doubts(examples),
        'calibration': calibration.reliability(examples.probabilities, examples.label),
        'filters': pictures.filters(kernel) if kernel is not None else None,
        'feature_maps': pictures.feature_maps(image, trained.feature_maps(image), names[examples.label[0]]),
    }
    return {name: picture for name, picture in found.items() if picture is not None}


def _examples(run: FinishedRun, trained: RestoredModel) -> Examples:
    """The test examples and what the run predicted for them."""
    source = trained.plan.source
    source.data.prepare()
    split = source.split('test')
    label, _ = read_predictions(run.workdir, run.result)
    if split.sha256 != run.result['split_sha256']:
        raise UserError(f'the test examples are not those of {str(run.workdir / "eval.json")!r} (sha256)')
    probabilities = read_probabilities(run.workdir, run.result)
    return Examples(lambda place: split.take(np.array([place])).image[0], label, probabilities, trained.class_names)


def _facts(run: FinishedRun) -> dict[str, str]:
    overall, result = run.result['statistics']['overall'], run.result
    lower, upper = overall['accuracy_interval']
    speeds = [row['images_per_second'] for row in run.epochs]
    facts = {
        'accuracy': f'{result["accuracy"]:.4f} (95 % interval {lower:.4f} to {upper:.4f})',
        'errors': f'{result["count"] - result["correct"]:,} of {result["count"]:,} examples',
        'loss': f'{result["loss"]:.4f}',
        'kappa': text_tables.number(overall['kappa']),
        'data set': f'{result["dataset"]}, split {result["split"]}',
        'parameters': f'{result["parameters"]:,}',
        'training': f'{run.epochs_told} epochs, seed {run.config.seed}; the result is of step {result["step"]:,}',
        'time': run.seconds_told + (f', {np.median(speeds):,.0f} images/s' if speeds else ''),
    }
    starts = read_provenance(run.workdir)
    if starts:
        last = starts[-1]
        versions = ', '.join(f'{name} {version}' for name, version in last['versions'].items())
        facts |= {
            'devices': f'{last["devices"]}; {last["processor"]}',
            'versions': versions,
            'commit': last['commit'],
            'begun': starts[0]['began'] + (f', and resumed {len(starts) - 1} times' if len(starts) > 1 else ''),
            'command': last['command'],
        }
    return {**facts, 'params_sha256': result['params_sha256']}


def _tables(run: FinishedRun, trained: RestoredModel) -> dict[str, Table]:
    statistics = run.result['statistics']
    class_head, *classes = class_rows(statistics)
    means = mean_rows(statistics)
    error_head, *errors = error_rows(statistics)
    layers = list(map(table_row, trained.layers))
    return {
        'statistics': Table(
            'Statistics by class',
            'Each class against all others. NA: undefined, and no part of the means.',
            class_head,
            classes,
            foot=means,
        ),
        'errors': Table('Most frequent errors', '', error_head, errors, 2),
        'layers': Table('Layers', 'Multiply-adds are those of the inference of one example.', HEADER, layers, 3),
        'config': _config(run),
    }


def _config(run: FinishedRun) -> Table:
    usual = dict(config_fields(default_config()))
    rows = [[name, repr(value), repr(usual.get(name, 'none'))] for name, value in config_fields(run.config)]
    rows.sort(key=lambda row: row[1] == row[2])
    changed = sum(value != default for _, value, default in rows)
    about = (
        f'The {changed} that are marked are others than in configs/default.py.' if changed else 'All as in the default.'
    )
    return Table('Config', about, ['field', 'value', 'default'], rows, 3, range(changed))
