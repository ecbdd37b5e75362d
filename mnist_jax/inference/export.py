"""Hand a trained model to someone else: as StableHLO, which JAX alone runs anywhere, and as ONNX."""

import contextlib
import importlib.util
import io
import logging
from pathlib import Path

import jax
import numpy as np
from jax import export as jax_export

from mnist_jax import files
from mnist_jax.config import ROOT
from mnist_jax.errors import UserError
from mnist_jax.inference.restored import RestoredModel
from mnist_jax.kernels import ops
from mnist_jax.workdir.snapshot import params_sha256

PLATFORMS = ('cpu', 'cuda', 'tpu')
STABLEHLO, ONNX = 'model.stablehlo', 'model.onnx'


def export(workdir: Path, step: str | None = None, onnx: bool = False) -> Path:
    """Write the model of a run to `export/` in its workdir, with a README that says how to call it; returns that place.

    What is exported maps images BxHxWxC, for any number B, to the probabilities BxK of their classes; the parameters
    are in it.

    Args:
      workdir: of the run.
      step: as for `trained.restore`.
      onnx: whether to write ONNX too, for which the converter must be installed.
    """
    if onnx and importlib.util.find_spec('jax2onnx') is None:
        raise UserError(
            '--onnx needs the converter jax2onnx, which is not installed: '
            f'.venv/bin/pip install --no-deps -r {ROOT / "requirements-onnx.txt"}'
        )
    trained = RestoredModel.load(workdir, step)
    written = {STABLEHLO: stablehlo(trained)}
    if onnx:
        written[ONNX] = to_onnx(trained)
    place = workdir / 'export'
    files.make_directory(place, '--workdir: the place of the export')
    for name, contents in written.items():
        files.write_bytes(place / name, contents)
    files.write_text(place / 'README.md', _readme(trained, onnx))
    if not onnx:
        (place / ONNX).unlink(missing_ok=True)  # Of another step, perhaps.
    print(f'{place}: {" and ".join(written)}; README.md there says how to call each', flush=True)
    return place


def stablehlo(trained: RestoredModel) -> bytes:
    """The model as `jax.export` serialises it, for the `PLATFORMS`; its images are uint8."""
    batch_size, *_ = jax_export.symbolic_shape('B')
    images = jax.ShapeDtypeStruct((batch_size, *trained.image_shape), np.uint8)
    with ops.portable():
        exported = jax_export.export(jax.jit(trained.probabilities()), platforms=PLATFORMS)(images)
    return bytes(exported.serialize())


def to_onnx(trained: RestoredModel) -> bytes:
    """The model as ONNX; its images are float32."""
    # It tells, with tracebacks, of each library that it could convert models of and that is not here.
    with contextlib.redirect_stderr(io.StringIO()), contextlib.ExitStack() as stack, ops.portable():
        logging.disable(logging.CRITICAL)
        stack.callback(logging.disable, logging.NOTSET)
        import jax2onnx

        model = jax2onnx.to_onnx(
            trained.probabilities(),
            [('B', *trained.image_shape)],
            input_names=['image'],
            output_names=['probabilities'],
        )
    return model.SerializeToString()


def _readme(trained: RestoredModel, onnx: bool) -> str:
    """Three lines of code for each format, tried by the tests as they stand."""
    shape, names = ' x '.join(map(str, trained.image_shape)), ', '.join(trained.class_names)
    state = trained.snapshot.state
    lines = [
        f'{trained.plan.config.model.name} trained on {trained.plan.source.name}, step {int(state.step)}, '
        f'params_sha256 {params_sha256(state)}.',
        '',
        f'Images: uint8, B x {shape}, pixels from 0 to {trained.plan.source.max_pixel}; any number B of them.',
        f'Result: the probabilities of {names}, float32, B x {len(trained.class_names)}.',
        '',
        f'`{STABLEHLO}`, with nothing but jax, on {", ".join(PLATFORMS)}:',
        '',
        '    from jax import export',
        f"    model = export.deserialize(bytearray(open('{STABLEHLO}', 'rb').read()))",
        '    probabilities = model.call(images)',
    ]
    if onnx:
        lines += [
            '',
            f'`{ONNX}`, with onnxruntime:',
            '',
            '    import onnxruntime',
            f"    model = onnxruntime.InferenceSession('{ONNX}')",
            "    (probabilities,) = model.run(None, {'image': images.astype('float32')})",
        ]
    return '\n'.join([*lines, ''])
