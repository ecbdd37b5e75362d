"""Measures robustness: the accuracy of runs on corrupted images, and on images that an attack has changed."""

import functools
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from mnist_jax import files, text_tables
from mnist_jax.data.partition import sample
from mnist_jax.data.records import Split
from mnist_jax.errors import UserError
from mnist_jax.files import user_path
from mnist_jax.inference.ensemble import check_data, load_model
from mnist_jax.inference.restored import RestoredModel
from mnist_jax.report import html_page, robustness
from mnist_jax.report.html_page import Section, Table
from mnist_jax.studies.corruptions import CORRUPTIONS
from mnist_jax.workdir.finished_runs import find_runs, short_names

EXAMPLES = 2000  # of the test split, drawn at random
EXAMPLES_PER_STEP = 256  # of an attack
PGD_STEPS = 10
EPSILONS = (0.02, 0.05, 0.1, 0.2, 0.3)  # largest change of a pixel by an attack, as a fraction of white
ABOUT_ATTACKS = {
    'FGSM': 'one step along the sign of the gradient of the loss (Goodfellow et al. 2015)',
    'PGD': f'{PGD_STEPS} such steps from a random start (Madry et al. 2018)',
}


class Stress(NamedTuple):
    """The accuracies of runs under corruptions and attacks.

    Attributes:
      strengths: For each corruption or attack, its unit and its strengths.
      clean: The accuracy of each run on the unchanged images.
      accuracies: For each run and corruption, the accuracy at each strength.
      pictures: For each corruption, one image at each strength.
    """

    strengths: dict[str, tuple[str, tuple[float, ...]]]
    clean: dict[str, float]
    accuracies: dict[str, dict[str, list[float]]]
    pictures: dict[str, np.ndarray]

    def mean(self, run: str) -> float:
        """The mean accuracy of a run over all corruptions and strengths, without attacks."""
        return float(np.mean([self.accuracies[run][name] for name in CORRUPTIONS]))


def stress(runs: Sequence[str], directory: str | Path) -> Stress:
    """Measures all runs on the same corrupted test images; writes `stress.json` and a page to `directory`/stress.

    Args:
      runs: Workdirs of runs or ensembles, or patterns of them, all with the same test split.
      directory: Where to write; for one run its workdir.

    Returns:
      The measurements, which are printed too.
    """
    directory = user_path(directory, '--workdir')
    files.check_no_file(directory, '--workdir')
    workdirs = find_runs(runs, ensembles=True)
    names = short_names(workdirs)
    models = {name: load_model(workdir) for name, workdir in zip(names, workdirs, strict=True)}
    examples = _examples(models)
    max_pixel = next(iter(models.values())).plan.source.max_pixel
    clean = {name: _accuracy(model, examples.image, examples.label) for name, model in models.items()}
    strengths: dict[str, tuple[str, tuple[float, ...]]] = {}
    accuracies: dict[str, dict[str, list[float]]] = {name: {} for name in models}
    pictures: dict[str, list[np.ndarray]] = {}
    images = examples.image / np.float32(max_pixel)
    for number, (name, corruption) in enumerate(CORRUPTIONS.items()):
        strengths[name] = corruption.unit, corruption.strengths
        for strength in corruption.strengths:
            rng = np.random.default_rng(number)  # The same for all strengths: they differ in nothing else.
            changed = np.clip(corruption.corrupt(images, strength, rng), 0, 1).astype(np.float32)
            pictures.setdefault(name, []).append(changed[0])
            pixels = np.rint(max_pixel * changed) if max_pixel > 1 else changed
            for run, model in models.items():
                accuracies[run].setdefault(name, []).append(_accuracy(model, pixels, examples.label))
    for name, steps in (('FGSM', 1), ('PGD', PGD_STEPS)):
        strengths[name] = 'largest change of a pixel', EPSILONS
        for epsilon in EPSILONS:
            for run, model in models.items():
                changed = attack(model, examples, epsilon * max_pixel, steps)
                accuracies[run].setdefault(name, []).append(_accuracy(model, changed, examples.label))
                if run == names[0]:
                    pictures.setdefault(name, []).append(changed[0] / max_pixel)
    outcome = Stress(
        strengths, clean, accuracies, {name: np.stack([images[0], *row]) for name, row in pictures.items()}
    )
    _write(outcome, examples, models, directory / 'stress')
    return outcome


def _examples(models: dict[str, RestoredModel]) -> Split:
    """Returns random test examples; the test split must be the same for all models."""
    members = [member for model in models.values() for member in model.members]
    check_data(members)
    digests = {member.plan.source.split('test').sha256 for member in members}
    if len(digests) > 1:
        raise UserError(f'--run: all runs must have the same test split, got {len(digests)} different ones')
    test = next(iter(models.values())).plan.source.split('test')
    return test.take(sample(test.size, EXAMPLES))


def _accuracy(model: RestoredModel, images_NxHxWxC: np.ndarray, label_N: np.ndarray) -> float:
    return float((model.predict(images_NxHxWxC, allow_dark=True).argmax(-1) == label_N).mean())


def attack(model: RestoredModel, examples: Split, epsilon: float, steps: int) -> np.ndarray:
    """Changes images to make the model err, without changing a pixel by more than `epsilon`.

    Args:
      model: The model, whose gradients the attack knows.
      examples: The images, and their labels, whose loss the attack raises.
      epsilon: The largest change, in the pixel values of the dataset.
      steps: 1 for FGSM, which starts from the image; more for PGD, which starts at random.

    Returns:
      The changed images, float32 NxHxWxC.
    """
    max_pixel = model.plan.source.max_pixel
    rng = np.random.default_rng(0)
    step_size = epsilon if steps == 1 else 2.5 * epsilon / steps
    gradient = _loss_gradient(model)
    parts = []
    for start in range(0, examples.size, EXAMPLES_PER_STEP):
        part = examples.take(slice(start, start + EXAMPLES_PER_STEP))
        image = part.image.astype(np.float32)
        low, high = np.maximum(image - epsilon, 0), np.minimum(image + epsilon, max_pixel)
        changed = image if steps == 1 else np.clip(image + rng.uniform(-epsilon, epsilon, image.shape), low, high)
        for _ in range(steps):
            direction = np.sign(np.asarray(gradient(jnp.asarray(changed, jnp.float32), jnp.asarray(part.label))))
            changed = np.clip(changed + step_size * direction, low, high)
        parts.append(changed.astype(np.float32))
    return np.concatenate(parts)


@functools.cache  # One program serves all attacks on a model.
def _loss_gradient(model: RestoredModel) -> Callable[[jax.Array, jax.Array], jax.Array]:
    def loss(image_BxHxWxC: jax.Array, label_B: jax.Array) -> jax.Array:
        return optax.softmax_cross_entropy_with_integer_labels(model.logits(image_BxHxWxC), label_B).sum()

    return jax.jit(jax.grad(loss))


def _write(outcome: Stress, examples: Split, models: dict[str, RestoredModel], directory: Path) -> None:
    """Writes the page and `stress.json`, and prints the table."""
    header = ['', 'run', 'unchanged', *(f'strength {number}' for number in range(1, 6)), 'unit', 'strengths']
    rows = [
        [
            name,
            run,
            f'{outcome.clean[run]:.4f}',
            *(f'{accuracy:.4f}' for accuracy in outcome.accuracies[run][name]),
            unit,
            ', '.join(f'{strength:g}' for strength in values),
        ]
        for name, (unit, values) in outcome.strengths.items()
        for run in models
    ]
    attacks = '; '.join(f'{name}: {text}' for name, text in ABOUT_ATTACKS.items())
    about = (
        f'Accuracy on {examples.size:,} random test images, always the same ones. The attacks know the model, and '
        f'change each pixel by at most the given fraction of white. {attacks}.'
    )
    sections: dict[str, Section] = {
        'curves': robustness.curves(outcome.strengths, outcome.clean, outcome.accuracies),
        'table': Table('Accuracies', about, header, rows, text_columns=2),
        'pictures': robustness.pictures(outcome.strengths, outcome.pictures),
    }
    facts = {
        'runs': ', '.join(models),
        'dataset': next(iter(models.values())).plan.source.name,
        **{f'mean accuracy of {run}': f'{outcome.mean(run):.4f} over all corruptions' for run in models},
    }
    page = html_page.write_page(directory, 'Robustness', facts, sections)
    record = {
        'examples': examples.size,
        'strengths': {name: {'unit': unit, 'values': values} for name, (unit, values) in outcome.strengths.items()},
        'runs': {
            run: {
                'workdir': str(model.workdir),
                'accuracy': outcome.clean[run],
                'mean_corrupted_accuracy': outcome.mean(run),
                'accuracies': outcome.accuracies[run],
            }
            for run, model in models.items()
        },
    }
    files.write_text(directory / 'stress.json', json.dumps(record, indent=2) + '\n')
    print('\n'.join(text_tables.titled([header, *rows], left=2)))
    for run in models:
        print(f'{run}: mean over all corruptions {outcome.mean(run):.4f}')
    print(f'Page: {page}', flush=True)
