"""The report page of a run: its learning curves, its errors, what its layers compute, and how to reproduce it."""

from pathlib import Path

import numpy as np

from mnist_jax import text_tables
from mnist_jax.config import ConfigDict, config_fields, default_config
from mnist_jax.data.known_label_errors import known_label_errors
from mnist_jax.data.partition import sample
from mnist_jax.data.records import Split
from mnist_jax.errors import UserError
from mnist_jax.files import JsonObject
from mnist_jax.inference.explain import Explainer
from mnist_jax.inference.restored import RestoredModel
from mnist_jax.learning.label_errors import find_label_suspects
from mnist_jax.models.layer_table import HEADER, table_row
from mnist_jax.report import calibration, confusion, curves, data_audit, feature_space, html_page, image_grids
from mnist_jax.report.figures import ReportFigure
from mnist_jax.report.html_page import Section, Table
from mnist_jax.report.image_grids import PredictedExamples, suspect_rows
from mnist_jax.workdir.finished_runs import FinishedRun, read_run_of
from mnist_jax.workdir.provenance import read_provenance, training_start
from mnist_jax.workdir.results import class_rows, error_rows, mean_rows, read_predictions, read_probabilities

MAX_SUSPECTS = 20
MAX_EXPLAINED = 6  # mistakes
MAX_MAPPED = 600  # examples in the map of the feature space


def write_report(model: RestoredModel) -> Path:
    """Writes the report of a finished run to `report/` in its workdir; returns the path of the page."""
    workdir = model.workdir
    run = read_run_of(model.snapshot, workdir)
    class_names = list(run.result['statistics']['by_class'])
    if class_names != list(model.class_names):
        raise UserError(
            f'{str(workdir / "eval.json")!r} is damaged: its classes must be {", ".join(model.class_names)}, '
            f'got {", ".join(class_names)}; --mode=eval rewrites it'
        )
    examples = _read_examples(run, model)
    sections: dict[str, Section] = {
        **_draw_figures(run, model, examples),
        **_audit_data(model),
        **_make_tables(run, model, examples),
    }
    title = f'{run.name}: {run.config.model.name} on {run.result["dataset"]}'
    return html_page.write_page(workdir / 'report', title, _list_facts(run), sections)


def make_figures(run: FinishedRun, model: RestoredModel) -> dict[str, ReportFigure]:
    """Returns the figures of a run by name, except for those that its model or its results do not support."""
    return _draw_figures(run, model, _read_examples(run, model))


def _draw_figures(run: FinishedRun, model: RestoredModel, examples: PredictedExamples) -> dict[str, ReportFigure]:
    matrix = np.array(run.result['confusion_matrix'])
    names = model.class_names
    kernel = model.filters()
    image = examples.image(0)
    maps = model.feature_maps(image, allow_dark=True)
    optional = {
        'learning_curves': curves.learning_curves(run) if run.epochs else None,
        'confusion_matrix': confusion.heat_maps(matrix, names),
        'all_classes': confusion.overview(matrix, names),
        'flow': confusion.flow(matrix, names),
        'by_class': confusion.by_class(run.result['statistics']),
        'mistakes': image_grids.mistakes(examples),
        'explanations': _explain(model, examples),
        'doubts': image_grids.doubts(examples),
        'feature_space': _map_features(model, examples),
        'calibration': calibration.reliability(examples.probabilities, examples.label),
        'filters': image_grids.filters(kernel) if kernel is not None else None,
        'feature_maps': image_grids.feature_maps(image, maps, names[examples.label[0]]),
    }
    return {name: figure for name, figure in optional.items() if figure is not None}


def _explain(model: RestoredModel, examples: PredictedExamples) -> ReportFigure | None:
    """Draws what the most confident mistakes depend on."""
    indices = image_grids.most_confident_mistakes(examples)[:MAX_EXPLAINED].tolist()
    explainer = Explainer(model)
    methods = {
        'gradient': explainer.gradient,
        'integrated gradients': explainer.integrated_gradients,
        'occlusion': explainer.occlusion,
    }
    maps = [
        {name: method(examples.image(index), int(examples.prediction[index])) for name, method in methods.items()}
        for index in indices
    ]
    return image_grids.explanations(examples, indices, maps)


def _map_features(model: RestoredModel, examples: PredictedExamples) -> ReportFigure | None:
    """Draws random test examples by their features."""
    indices = sample(examples.size, MAX_MAPPED)
    features_NxF = model.last_features(np.stack([examples.image(index) for index in indices]))
    if features_NxF is None:
        return None
    return feature_space.feature_map(
        features_NxF, examples.label[indices], examples.prediction[indices], model.class_names
    )


def _read_examples(run: FinishedRun, model: RestoredModel) -> PredictedExamples:
    """Reads the test examples and the run's predictions for them."""
    source = model.plan.source
    source.data.prepare()
    split = source.split('test')
    label, _ = read_predictions(run.workdir, run.result)
    if split.sha256 != run.result['split_sha256']:
        raise UserError(
            f'the test split must have the SHA-256 {run.result["split_sha256"]}, as in '
            f'{str(run.workdir / "eval.json")!r}, got {split.sha256}'
        )
    probabilities = read_probabilities(run.workdir, run.result)
    return PredictedExamples(
        lambda index: split.take(np.array([index])).image[0], label, probabilities, model.class_names
    )


def _describe_loss(loss: ConfigDict) -> str:
    """Returns the name of a loss, and its arguments other than 0."""
    arguments = [f'{name} {value}' for name, value in loss.items() if name != 'name' and value]
    return ', '.join([loss.name, *arguments]).replace('_', ' ')


def _list_facts(run: FinishedRun) -> dict[str, str]:
    overall, result = run.result['statistics']['overall'], run.result
    lower, upper = overall['accuracy_interval']
    speeds = [row['images_per_second'] for row in run.epochs]
    facts = {
        'accuracy': f'{result["accuracy"]:.4f} (95% confidence interval {lower:.4f} to {upper:.4f})',
        'errors': f'{result["count"] - result["correct"]:,} of {result["count"]:,} examples',
        'loss': f'{result["loss"]:.4f} ({_describe_loss(run.config.loss)})',
        'cross-entropy': text_tables.number(run.cross_entropy),
        "Cohen's kappa": text_tables.number(overall['kappa']),
        'dataset': f'{result["dataset"]}, split {result["split"]}',
        'parameters': f'{result["parameters"]:,}',
        'training': f'{run.epochs_text} epochs, seed {run.config.seed}; evaluated at step {result["step"]:,}',
        'training time': run.seconds_text + (f', {np.median(speeds):,.0f} images/s' if speeds else ''),
    }
    if top_k := result.get('top_k', {}):  # Results of older versions lack it.
        facts['among the most probable'] = ', '.join(f'{k} classes: {value:.4f}' for k, value in top_k.items())
    facts |= run.caveats
    starts = read_provenance(run.workdir)
    if starts:
        resumed = training_start(starts, result['step'])
        start = starts[resumed]
        facts |= {
            'devices': f'{start["devices"]}; {start["processor"]}',
            'versions': ', '.join(f'{name} {version}' for name, version in start['versions'].items()),
            'commit': start['commit'],
            'started': starts[0]['began'] + (f', resumed {resumed} time{"s" * (resumed > 1)}' if resumed else ''),
            'command': start['command'],
        }
    return {**facts, 'params_sha256': result['params_sha256']}


def _make_tables(run: FinishedRun, model: RestoredModel, examples: PredictedExamples) -> dict[str, Table]:
    statistics = run.result['statistics']
    class_header, *classes = class_rows(statistics)
    error_header, *errors = error_rows(statistics)
    return {
        'statistics': Table(
            'Statistics by class',
            'Each class against all others. NA: undefined, and not included in the means.',
            class_header,
            classes,
            footer=mean_rows(statistics),
        ),
        **({'errors': Table('Most frequent errors', '', error_header, errors, text_columns=2)} if errors else {}),
        **_make_sets_table(run.result.get('uncertainty')),
        **_make_suspects_table(examples),
        **make_known_errors_table(run.result, examples),
        'layers': Table(
            'Layers',
            'Multiply-adds are counted for the inference of one example.',
            HEADER,
            [table_row(layer) for layer in model.layers],
            text_columns=3,
        ),
        'config': _make_config_table(run),
    }


def _make_sets_table(uncertainty: JsonObject | None) -> dict[str, Table]:
    """Returns the table of conformal prediction sets, if the run has validation examples."""
    if uncertainty is None:
        return {}
    about = (
        'A prediction set holds the classes with at least this probability, which was chosen on '
        f'{uncertainty["validation_examples"]:,} validation examples (split conformal prediction). Of new examples '
        'like these, at least the target fraction has its class in its set. The temperature with the smallest '
        f'cross-entropy on the validation examples is {uncertainty["temperature"]:.3f}; it changes the cross-entropy '
        f'of the test examples from {uncertainty["cross_entropy"]:.4f} to '
        f'{uncertainty["cross_entropy_with_temperature"]:.4f}.'
    )
    rows = [
        [
            f'{row["coverage"]:.0%}',
            f'{row["smallest_probability"]:.4g}',
            f'{row["covered"]:.4f}',
            f'{row["mean_size"]:.3f}',
        ]
        for row in uncertainty['prediction_sets']
    ]
    header = ['target', 'smallest probability', 'covered test examples', 'mean number of classes']
    return {'prediction_sets': Table('Prediction sets', about, header, rows)}


def _make_suspects_table(examples: PredictedExamples) -> dict[str, Table]:
    suspects = find_label_suspects(examples.probabilities, examples.label)
    if not len(suspects.example):
        return {}
    about = (
        f'For {len(suspects.example):,} test examples, another class is suggested, for {suspects.confident.sum():,} of '
        'them with at least the mean confidence of that class: their labels may be wrong (confident learning; '
        f'Northcutt et al. 2021). At most {MAX_SUSPECTS} are listed. --mode=explore with --config.folds=5 finds such '
        'training examples.'
    )
    return {'label_suspects': Table('Label suspects', about, *suspect_rows(examples, suspects, MAX_SUSPECTS))}


def make_known_errors_table(result: JsonObject, examples: PredictedExamples) -> dict[str, Table]:
    """Returns the table of the test labels that most people did not confirm, if there are any."""
    errors = known_label_errors(result['dataset'], result['split'], examples.label)
    if not errors:
        return {}
    names = examples.class_names
    is_known = np.isin(np.arange(examples.size), list(errors))
    is_wrong = examples.prediction != examples.label
    about = (
        f'Fewer than 3 of 5 people confirmed these {len(errors)} labels of the test split (Northcutt et al. 2021). For '
        'some of them, no other class had a majority. '
        f'{(is_wrong & is_known).sum()} of the {is_wrong.sum():,} errors of this run are among them; without them, '
        f'its accuracy is {1 - is_wrong[~is_known].mean():.4f}.'
    )
    rows = [
        [
            str(index),
            names[error.label],
            'no majority' if error.seen is None else names[error.seen],
            names[examples.prediction[index]],
            f'{examples.confidence[index]:.4f}',
        ]
        for index, error in errors.items()
    ]
    header = ['index', 'label', 'what most people saw', 'prediction', 'its probability']
    return {'known_label_errors': Table('Known label errors', about, header, rows)}


def _audit_data(model: RestoredModel) -> dict[str, Section]:
    """Returns the sections about the data of a run; none if it does not fit in memory."""
    source = model.plan.source
    splits = {name: source.split(name) for name in source.split_names}
    in_memory = {name: split for name, split in splits.items() if isinstance(split, Split)}
    if len(in_memory) < len(splits):
        return {}
    audit = data_audit.audit(in_memory, model.class_names)
    header, *rows = data_audit.split_table(audit)
    same_header, *same_rows = data_audit.duplicate_table(audit)
    optional = {
        'data': Table('Data', '', header, rows),
        'duplicates': Table('Duplicates', data_audit.ABOUT_DUPLICATES, same_header, same_rows),
        'near_duplicates': data_audit.draw_near_duplicates(audit),
        'outliers': data_audit.draw_outliers(audit),
    }
    return {name: section for name, section in optional.items() if section is not None}


def _make_config_table(run: FinishedRun) -> Table:
    """Returns the table of all config fields; those that differ from the default come first and are highlighted."""
    defaults = dict(config_fields(default_config()))
    rows = [[name, repr(value), repr(defaults.get(name, 'none'))] for name, value in config_fields(run.config)]
    rows.sort(key=lambda row: row[1] == row[2])
    changed = sum(value != default for _, value, default in rows)
    about = (
        f'Highlighted: the {changed} fields that differ from configs/default.py.'
        if changed
        else 'All fields have the values of configs/default.py.'
    )
    return Table('Config', about, ['field', 'value', 'default'], rows, text_columns=3, highlighted=range(changed))
