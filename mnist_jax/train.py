"""A run from its begin, or from where it was left, to its result."""

import contextlib
import shlex
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from absl import logging

from mnist_jax import files
from mnist_jax.config import ConfigDict, config_sha256
from mnist_jax.data.source import SPLITS
from mnist_jax.distributed import processes
from mnist_jax.distributed.devices import preserves_bits
from mnist_jax.distributed.signals import stop_on_signals
from mnist_jax.errors import UserError
from mnist_jax.evaluate import evaluate_test
from mnist_jax.inference.restored import RestoredModel, result_step
from mnist_jax.models.layer_table import format_table
from mnist_jax.training.experiment import Experiment, make_experiment
from mnist_jax.training.loop import Loop
from mnist_jax.workdir.checkpoints import Checkpoints
from mnist_jax.workdir.metrics_log import MetricsLog
from mnist_jax.workdir.provenance import record_start
from mnist_jax.workdir.snapshot import Snapshot


def train(config: ConfigDict, workdir: Path, whole: Path | None = None, report: bool = False) -> dict[str, Any]:
    """Train the run of `config` in `workdir`, or go on with what is there; returns its evaluation on the test split.

    `whole` is the directory that no other process may train in meanwhile, `workdir` if not given. With `report`, its
    report is written at the end.
    """
    _check_no_folds(workdir)
    checkpoints = Checkpoints(workdir)
    steps = checkpoints.steps()
    if steps:
        checkpoints.check_config(config)
    experiment = make_experiment(config)
    checkpoints.check_data(experiment.source.data.digests)
    for name in SPLITS:
        experiment.source.split(name)  # What is wrong there shows now and not after hours of training.
    files.make_directory(workdir, '--workdir')
    with contextlib.ExitStack() as stack:
        hold = stack.enter_context(files.DirectoryLock(whole or workdir, '--workdir')) if processes.is_main() else None
        _check_no_folds(workdir)
        if checkpoints.steps() != steps:
            raise UserError(f'another process has just trained in --workdir {str(workdir)!r}; run the command again')
        checkpoints.create_directory()
        MetricsLog.create_directory(workdir)
        snapshot, result = _train(experiment, checkpoints, steps, hold.renew if hold else lambda: None)
        if report and processes.is_main():
            _write_report(RestoredModel(workdir, experiment, snapshot))
        return result


def _check_no_folds(workdir: Path) -> None:
    if any(workdir.glob('fold-*')):
        raise UserError(f'--workdir {str(workdir)!r} holds a cross-validation; give another --workdir')


def _train(
    experiment: Experiment, checkpoints: Checkpoints, steps: Sequence[int], prepare: Callable[[], None]
) -> tuple[Snapshot, dict[str, Any]]:
    """Train from the newest good checkpoint of `steps`, or from the begin, in a workdir that nobody else writes to.

    `prepare` is called before each save. Returns what the run ends with, and its evaluation.
    """
    config, workdir, digests = experiment.config, checkpoints.workdir, experiment.source.data.digests
    # Nobody writes before all have read.
    processes.check_identical(
        {
            'config': f'{config_sha256(config)}, {config.epochs} epochs',
            'config.devices': str(config.devices),
            'data set': str(digests),
            'checkpoints in --workdir': str(steps),
        }
    )
    processes.check_shared_directory(workdir)
    snapshot = _begin(experiment, checkpoints, steps)
    if processes.is_main():
        checkpoints.write_config(config, digests)
        record_start(workdir, int(snapshot.state.step), str(experiment.replicas))
    _tell_beginning(experiment, workdir)
    monitor = MetricsLog(
        workdir, config.epochs, snapshot.epoch.number * experiment.steps_per_epoch, processes.is_main()
    )
    with stop_on_signals() as request:
        with checkpoints.open(prepare) as writer:
            if not steps:
                writer.save(snapshot)
            snapshot = Loop(experiment, writer, monitor, request).train(snapshot)
        request.unsaved = False
        monitor.close()
        try:
            return _result(experiment, checkpoints, snapshot, workdir)
        finally:
            writer.check()


def _begin(experiment: Experiment, checkpoints: Checkpoints, steps: Sequence[int]) -> Snapshot:
    """What to go on from: the newest of `steps` that is good, or nothing."""
    if not steps:
        return experiment.first_snapshot()
    snapshot, damaged = checkpoints.restore_newest(steps, experiment.abstract_snapshot)
    if snapshot.epoch.number > experiment.config.epochs:
        raise UserError(
            f'config.epochs={experiment.config.epochs} is less than the {snapshot.epoch.number} that this run has; '
            'epochs may be raised'
        )
    processes.check_identical({'the checkpoint that is good': str(snapshot.state.step)})
    if damaged and processes.is_main():
        checkpoints.move_to_damaged(damaged)
    processes.check_identical({'what is damaged': str(damaged)})  # Nobody goes on before it is out of the way.
    logging.info('Going on from the checkpoint %s', _place(experiment, snapshot))
    return snapshot


def _result(
    experiment: Experiment, checkpoints: Checkpoints, snapshot: Snapshot, workdir: Path
) -> tuple[Snapshot, dict[str, Any]]:
    """What the run ends with, and its evaluation."""
    step = result_step(experiment, snapshot)
    if step != snapshot.state.step:
        logging.info('The best epoch is the result: step %s', f'{step:,}')
        snapshot = checkpoints.restore(step, experiment.abstract_snapshot)
    result = evaluate_test(experiment, snapshot, workdir)
    logging.info('Everything lies in %s; to evaluate again:', workdir)
    logging.info('  python -m mnist_jax.main --mode=eval --workdir=%s', shlex.quote(str(workdir)))
    return snapshot, result


def _write_report(finished: RestoredModel) -> None:
    from mnist_jax.report.run import write_report  # Matplotlib takes a second, which not every run needs.

    try:
        logging.info('How it learned and where it errs: %s', write_report(finished))
    except (OSError, UserError) as error:  # The run itself is whole.
        logging.error('The report cannot be written (%s); --mode=report tries again', error)


def _place(experiment: Experiment, snapshot: Snapshot) -> str:
    step, epochs = int(snapshot.state.step), snapshot.epoch.number
    within = step - epochs * experiment.steps_per_epoch
    return (
        f'of step {step:,}, {within:,} steps into epoch {epochs + 1}'
        if within
        else f'of epoch {epochs} (step {step:,})'
    )


def _tell_beginning(experiment: Experiment, workdir: Path) -> None:
    source = experiment.source
    splits = ((name, source.split(name)) for name in SPLITS)
    sizes = ', '.join(f'{name} {split.size:,}' for name, split in splits if split is not None)
    chunks, devices = experiment.config.chunks, len(experiment.replicas)
    logging.info('devices   %s', experiment.replicas)
    if not preserves_bits(chunks, devices):
        logging.info(
            'bits      not those of one device: %d chunks are not 1, 2, 4, 8, ... for each of %d devices',
            chunks,
            devices,
        )
    if experiment.steps_per_call > 1:
        logging.info('steps     %d in one call', experiment.steps_per_call)
    logging.info('data set  %s: %s', source.name, sizes)
    logging.info('workdir   %s', workdir)
    for line in format_table(experiment.model, source.image_shape).splitlines():
        logging.info('%s', line)
