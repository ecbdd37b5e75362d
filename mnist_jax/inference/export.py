"""Exports a trained model as StableHLO, which JAX runs, and as ONNX."""

import contextlib
import importlib.util
import io
import logging
from pathlib import Path

import jax
import numpy as np
from jax import export as jax_export

from mnist_jax import files
from mnist_jax.config import CHECKOUT
from mnist_jax.errors import UserError, first_line
from mnist_jax.inference.ensemble import Ensemble, load_model
from mnist_jax.inference.restored import RestoredModel
from mnist_jax.kernels import ops

PLATFORMS = ('cpu', 'cuda', 'tpu')
STABLEHLO, ONNX = 'model.stablehlo', 'model.onnx'


def export(workdir: str | Path, step: str | None = None, onnx: bool = False) -> Path:
    """Exports the model of a run to `export/` in its workdir, with a README that shows how to call it.

    The exported model maps images BxHxWxC, for any batch size B, to class probabilities BxK. It contains the
    parameters.

    Args:
      workdir: The directory of the run.
      step: The checkpoint; see `restore_snapshot`.
      onnx: Whether to write ONNX as well, which needs the converter jax2onnx.

    Returns:
      The directory of the exported files.
    """
    if onnx and importlib.util.find_spec('jax2onnx') is None:
        requirements = f'-r {CHECKOUT / "requirements-onnx.txt"}' if CHECKOUT else 'jax2onnx onnx onnx-ir sympy mpmath'
        raise UserError(
            f'--onnx needs the converter jax2onnx, which is not installed: pip install --no-deps {requirements}'
        )
    model = load_model(workdir, step)
    dtypes = {member.plan.config.dtype for member in model.members}
    if onnx and dtypes != {'float32'}:
        raise UserError(
            f'--onnx needs a model whose config.dtype is float32, got {", ".join(sorted(dtypes - {"float32"}))}, which '
            'ONNX Runtime does not compute on CPUs'
        )
    contents = {STABLEHLO: to_stablehlo(model)}
    if onnx:
        contents[ONNX] = to_onnx(model)
    directory = model.workdir / 'export'
    files.make_directory(directory, '--workdir: the export directory')
    for name, data in contents.items():
        files.write_bytes(directory / name, data)
    files.write_text(directory / 'README.md', _format_readme(model, onnx))
    if not onnx:
        (directory / ONNX).unlink(missing_ok=True)  # It may be from another step.
    print(f'wrote {" and ".join(contents)} to {directory}; README.md there shows how to call them', flush=True)
    return directory


def to_stablehlo(model: RestoredModel) -> bytes:
    """Returns the model as serialized by `jax.export`, for all `PLATFORMS`; it takes uint8 images."""
    batch_size, *_ = jax_export.symbolic_shape('B')
    image = jax.ShapeDtypeStruct((batch_size, *model.image_shape), np.uint8)
    with ops.portable():
        exported = jax_export.export(jax.jit(model.inference_function()), platforms=PLATFORMS)(image)
    return bytes(exported.serialize())


def to_onnx(model: RestoredModel) -> bytes:
    """Returns the model as ONNX; it takes float32 images.

    Raises:
      UserError: jax2onnx cannot convert the model.
    """
    # jax2onnx prints a traceback for every optional backend that is not installed.
    with contextlib.redirect_stderr(io.StringIO()), contextlib.ExitStack() as stack, ops.portable():
        logging.disable(logging.CRITICAL)
        stack.callback(logging.disable, logging.NOTSET)
        try:
            import jax2onnx
        except ImportError as error:  # It is installed without its dependencies.
            raise UserError(f'--onnx needs what jax2onnx imports: {first_line(error)}') from None
        try:
            onnx_model = jax2onnx.to_onnx(
                model.inference_function(),
                [('B', *model.image_shape)],
                input_names=['image'],
                output_names=['probabilities'],
            )
        except Exception as error:  # Its plugins raise whatever they raise.
            raise UserError(
                f'--onnx must not be used for this model, which jax2onnx cannot convert: {first_line(error)}'
            ) from None
    return onnx_model.SerializeToString()


def _format_readme(model: RestoredModel, onnx: bool) -> str:
    """Returns the README, whose code the tests run as it stands."""
    plan, state = model.plan, model.snapshot.state
    about = (
        f'{plan.config.model.name} trained on {plan.source.name}, step {int(state.step)}, '
        f'params_sha256 {model.params_sha256}.'
    )
    if isinstance(model, Ensemble):
        about = (
            f'Ensemble of {len(model.members)} runs trained on {plan.source.name}: the mean of their {model.combine} '
            f'over {model.views.number} views of each image, params_sha256 {model.params_sha256}.'
        )
    lines = [
        about,
        '',
        f'Input: uint8 images, B x {" x ".join(map(str, model.image_shape))}, with pixel values from 0 to '
        f'{plan.source.max_pixel}; any batch size B.',
        f'Output: float32 probabilities, B x {len(model.class_names)}, of the classes {", ".join(model.class_names)}.',
        '',
        f'`{STABLEHLO}` needs JAX and the package flatbuffers, and runs on {", ".join(PLATFORMS)}:',
        '',
        '    from jax import export',
        f"    model = export.deserialize(bytearray(open('{STABLEHLO}', 'rb').read()))",
        '    probabilities = model.call(images)',
    ]
    if onnx:
        lines += [
            '',
            f'`{ONNX}` needs onnxruntime:',
            '',
            '    import onnxruntime',
            f"    model = onnxruntime.InferenceSession('{ONNX}')",
            "    (probabilities,) = model.run(None, {'image': images.astype('float32')})",
        ]
    return '\n'.join([*lines, ''])
