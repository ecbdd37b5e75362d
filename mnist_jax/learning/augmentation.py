"""Random changes of training images: each a function of (seed, epoch, index of the example), in the compiled step.

A config lists the steps in their order, each with a probability.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from mnist_jax.errors import UserError, check_range
from mnist_jax.factory import build
from mnist_jax.learning import augmentation_steps as steps
from mnist_jax.learning import handwriting_steps
from mnist_jax.learning.augmentation_steps import Draw, Mixed, Step, mix

Batch = dict[str, jax.Array]
Augment = Callable[[Batch, jax.Array, jax.Array], Batch]
"""Maps a chunk of a batch (image, label, mask, index, perhaps occurrence), a random key and the epoch to the new chunk.

If images are mixed, it also has `labels` and `label_weights`, BxM, whose weights add up to 1 for each example, and the
probabilities of the teachers, `teacher` BxK, are mixed too.
"""

AUGMENTATIONS: dict[str, Callable[..., Step]] = {
    'shift': steps.shift,
    'affine': steps.affine,
    'elastic': steps.elastic,
    'flip': steps.flip,
    'alternating_flip': steps.alternating_flip,
    'brightness': steps.brightness,
    'contrast': steps.contrast,
    'erase': steps.erase,
    'noise': steps.noise,
    'mixup': steps.mixup,
    'cutmix': steps.cutmix,
    'stroke': handwriting_steps.stroke,
    'blur': handwriting_steps.blur,
    'pixelate': handwriting_steps.pixelate,
    'binarize': handwriting_steps.binarize,
    'frame': handwriting_steps.frame,
}
MIXING = ('mixup', 'cutmix')  # They mix an image with another one of its chunk.


def make_augmentation(configs: Sequence[Mapping[str, Any]], max_pixel: float) -> Augment | None:
    """Returns all steps that `config.augmentation` lists as one function; None for no steps.

    Args:
      configs: For each step its name in `AUGMENTATIONS`, its arguments and, by default 1, its `probability`.
      max_pixel: The pixel value that stands for white.

    Raises:
      UserError: a step is invalid.
    """
    chosen: list[tuple[Step, float]] = []
    for number, config in enumerate(configs):
        field = f'config.augmentation[{number}]'
        if not isinstance(config, Mapping) or 'name' not in config:
            raise UserError(f"{field} must be a dict such as {{'name': 'shift', 'pixels': 2}}, got {config!r}")
        options = dict(config)
        probability = options.pop('probability', 1.0)
        check_range(f'{field}.probability', probability, 0.0, 1.0)
        try:
            step = build(field, AUGMENTATIONS, options, reserved=('probability',))
        except ValueError as error:  # The arguments do not fit together.
            raise UserError(f'{field}.{error}') from None
        chosen.append((step, probability))
    if not chosen:
        return None

    def augment(chunk: Batch, key: jax.Array, epoch: jax.Array) -> Batch:
        image_BxHxWxC, is_example_B = chunk['image'].astype(jnp.float32), chunk['mask'] > 0
        labels_BxM, weights_BxM = chunk['label'][:, None], jnp.ones_like(chunk['mask'])[:, None]
        for number, (step, probability) in enumerate(chosen):
            step_key = jax.random.fold_in(key, number)
            fixed_key_B = jax.vmap(lambda index, step_key=step_key: jax.random.fold_in(step_key, index))(chunk['index'])
            epoch_key_B = jax.vmap(lambda key: jax.random.fold_in(key, epoch))(fixed_key_B)
            if 'occurrence' in chunk:  # Otherwise all occurrences of an example in an epoch would look alike.
                again_key_B = jax.vmap(jax.random.fold_in)(epoch_key_B, chunk['occurrence'])
                epoch_key_B = jnp.where(chunk['occurrence'] > 0, again_key_B, epoch_key_B)
            choice_key_B, key_B = jax.vmap(jax.random.split)(epoch_key_B).T
            draw = Draw(key_B, fixed_key_B, epoch, max_pixel, is_example_B & is_example_B[::-1])
            changed = step(image_BxHxWxC, draw)
            changed_BxHxWxC, own_weight_B = changed if isinstance(changed, Mixed) else (changed, None)
            if probability < 1:
                is_changed_B = jax.vmap(jax.random.uniform)(choice_key_B) < probability
                changed_BxHxWxC = jnp.where(is_changed_B[:, None, None, None], changed_BxHxWxC, image_BxHxWxC)
                if own_weight_B is not None:
                    own_weight_B = jnp.where(is_changed_B, own_weight_B, 1.0)
            if own_weight_B is not None:
                own, partner = weights_BxM * own_weight_B[:, None], weights_BxM[::-1] * (1 - own_weight_B)[:, None]
                weights_BxM = jnp.concatenate([own, partner], axis=1)
                labels_BxM = jnp.concatenate([labels_BxM, labels_BxM[::-1]], axis=1)
                if 'teacher' in chunk:
                    chunk = {**chunk, 'teacher': mix(chunk['teacher'], own_weight_B)}
            image_BxHxWxC = changed_BxHxWxC
        mixed = {'labels': labels_BxM, 'label_weights': weights_BxM} if labels_BxM.shape[1] > 1 else {}
        return {**chunk, 'image': image_BxHxWxC, **mixed}

    return augment
