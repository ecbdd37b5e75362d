"""Trains a run from the start, or resumes it, and evaluates it.

The loop over epochs and steps is `training.loop.Loop.run`; the step that it calls is `learning.step.train_step`.
"""

import contextlib
import dataclasses
import itertools
import math
import shlex
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from absl import logging

from mnist_jax import files
from mnist_jax.config import ConfigDict, config_sha256
from mnist_jax.distributed import processes
from mnist_jax.distributed.devices import preserves_bits
from mnist_jax.distributed.signals import stop_on_signals
from mnist_jax.errors import Interrupted, UserError
from mnist_jax.evaluate import evaluate_snapshot
from mnist_jax.files import JsonObject
from mnist_jax.inference.origin import initial_snapshot
from mnist_jax.inference.restored import RestoredModel, result_step
from mnist_jax.inference.teacher import FILE as TEACHER_FILE
from mnist_jax.inference.teacher import make_teacher
from mnist_jax.kernels.build import kernels_available
from mnist_jax.training.experiment import Experiment, make_experiment
from mnist_jax.training.loop import Loop, OnStep
from mnist_jax.training.profiling import Profiler
from mnist_jax.workdir.checkpoints import Checkpoints, check_holds_only
from mnist_jax.workdir.directory_lock import DirectoryLock
from mnist_jax.workdir.metrics_log import MetricsLog
from mnist_jax.workdir.provenance import EpochHistory, changed_code, program, read_epochs, read_origin, record_start
from mnist_jax.workdir.results import describe_overlaps
from mnist_jax.workdir.snapshot import Snapshot, params_sha256
from mnist_jax.workdir.trackers import Trackers, check_trackers


def train(
    config: ConfigDict,
    workdir: str | Path,
    lock_directory: Path | None = None,
    report: bool = False,
    on_step: OnStep | None = None,
    reschedule: bool = False,
    until: int | None = None,
    evaluate: bool = True,
) -> JsonObject:
    """Trains the run of `config` in `workdir`, or resumes the existing run, and evaluates it.

    Args:
      config: The config of the run. If the workdir holds a run, it must be the config of that run, apart from
        `config.CHANGEABLE_FIELDS`.
      workdir: The directory of the run; created if it does not exist.
      lock_directory: A directory to lock in addition to `workdir`, so that no other process trains in it.
      report: Whether to write the report of the finished run.
      on_step: Called after each step; see `training.loop.OnStep`.
      reschedule: Whether the run may be resumed with another number of epochs if its updates so far had other learning
        rates than in a run of that many epochs, so that the learning rate jumps.
      until: The epoch after which to stop, as if interrupted; None for the end of the run.
      evaluate: Whether to evaluate the run on the test split. If not, only `step` and `params_sha256` are returned.

    Returns:
      The evaluation on the test split, as in `eval.json`.

    Raises:
      UserError: the config, the data or the workdir is invalid; nothing was trained.
      Interrupted: the run was asked to stop; its progress is saved.
      NonFiniteError: a loss or an update is not finite; the last checkpoint is kept.
      WriteError: the last checkpoint could not be written.
    """
    workdir = files.user_path(workdir, '--workdir')
    if config.population:
        raise UserError(
            f'config.population must be 0 for a single run, got {config.population}; '
            'mnist_jax.studies.population.train_population trains several'
        )
    # Fail now rather than after hours of training: all input is checked before the workdir is touched.
    check_holds_only(workdir, 'a run')
    checkpoints = Checkpoints(workdir)
    checkpoints.check_path()
    steps = checkpoints.steps()
    saved = checkpoints.check_config(config) if steps else config
    recorded = read_epochs(workdir)
    experiment = make_experiment(config)
    check_trackers(config.trackers)
    digests = experiment.source.data.digests
    checkpoints.check_data(digests)
    checkpoints.check_class_names(experiment.source.description)
    for name in experiment.source.split_names:
        experiment.source.split(name)
    first = None if steps else initial_snapshot(experiment, workdir)
    teacher = make_teacher(experiment, workdir, resumed=bool(steps))
    teachers = [run['params_sha256'] for run in teacher.runs] if teacher is not None else []
    checkpoints.check_teachers(teachers)
    if teacher is not None:
        experiment = dataclasses.replace(experiment, teacher=teacher.probabilities)
    files.make_directory(workdir, '--workdir')
    with contextlib.ExitStack() as stack:
        directories = dict.fromkeys([lock_directory or workdir, workdir]) if processes.is_main() else []
        locks = [stack.enter_context(DirectoryLock(directory, '--workdir')) for directory in directories]
        check_holds_only(workdir, 'a run')
        if checkpoints.steps() != steps:
            raise UserError(f'another process has just trained in --workdir {str(workdir)!r}; run the command again')
        checkpoints.create_directory()
        MetricsLog.create_directory(workdir)
        # No process writes before all of them have read the workdir.
        processes.check_identical(
            {
                'config': f'{config_sha256(config)}, {config.epochs} epochs',
                'config.devices': str(config.devices),
                # They decide after how many updates the processes exchange data, and save.
                'config.dataset.on_device': config.dataset.on_device,
                'config.checkpoint_every_steps': str(config.checkpoint_every_steps),
                '--reschedule': str(reschedule),
                'dataset': str(digests),
                'checkpoints in --workdir': str(steps),
                'config.distillation.workdirs': str(teacher and teacher.runs),
                'the C kernels': str(experiment.replicas.on_cpu and kernels_available()),
            }
        )
        processes.check_shared_directory(workdir)
        if first is None:
            origin, history = read_origin(workdir), recorded or [(0, saved.epochs)]
            snapshot, epochs = _restore_newest(experiment, checkpoints, steps, history, reschedule)
            if not recorded:
                logging.warning(
                    'provenance.json does not record the schedule of this run so far; it is taken to be that of a run '
                    'of %d epochs',
                    saved.epochs,
                )
        else:
            snapshot, origin = first
            epochs = [(0, config.epochs)]
            processes.check_identical({'config.init.workdir': str(origin)})
        for field in changed_code(workdir, experiment.own_code, int(snapshot.state.step)):
            logging.warning('code      that of %s has changed since this run was started', field)
        _renew(locks)  # Another host that took them at the same moment is noticed now.
        if processes.is_main():
            checkpoints.write_config(config, digests, experiment.source.description, teachers)
            if teacher is not None and teacher.is_new:
                files.write_bytes(workdir / TEACHER_FILE, teacher.contents)
            record_start(
                workdir,
                int(snapshot.state.step),
                str(experiment.replicas),
                epochs,
                experiment.replicas.deterministic,
                origin,
                experiment.own_code,
            )
            checkpoints.keep(workdir / 'provenance.json', *([workdir / TEACHER_FILE] if teacher is not None else []))
        _log_start(experiment, workdir)
        first_step = snapshot.epoch.number * experiment.steps_per_epoch
        trackers = stack.enter_context(Trackers(config, workdir, first_step, processes.is_main()))
        metrics_log = MetricsLog(workdir, config.epochs, first_step, processes.is_main(), trackers.log)
        with stop_on_signals() as request:
            try:
                with checkpoints.open(lambda: _renew(locks)) as writer:
                    if first is not None:
                        writer.save(snapshot)
                    with Profiler(workdir / 'profile', config.profile_steps if processes.is_main() else 0) as profiler:
                        loop = Loop(experiment, writer, metrics_log, request, on_step, profiler)
                        snapshot = loop.run(snapshot, until)
                request.unsaved = False
            finally:
                metrics_log.complete()
            # A signal that arrived after the last step has been answered, but nothing has stopped.
            if signal_number := processes.agree_on_stop(request, at_once=True)[0]:
                raise Interrupted(signal_number, f'after step {int(snapshot.state.step):,}')
            try:
                snapshot = _end_with(experiment, checkpoints, snapshot, writer.best)
                if not evaluate:
                    return {'step': int(snapshot.state.step), 'params_sha256': params_sha256(snapshot.state.variables)}
                result = evaluate_snapshot(experiment, snapshot, checkpoints.workdir)
                logging.info('Results are in %s; to evaluate again:', checkpoints.workdir)
                logging.info('  %s', shlex.join([*program(), '--mode=eval', f'--workdir={checkpoints.workdir}']))
            finally:
                writer.check()
        page = _write_report(RestoredModel(workdir, experiment, snapshot)) if report and processes.is_main() else None
        trackers.add_result(result, page)
        return result


def _renew(locks: Sequence[DirectoryLock]) -> None:
    for lock in locks:
        lock.renew()


def _restore_newest(
    experiment: Experiment, checkpoints: Checkpoints, steps: list[int], epochs: EpochHistory, reschedule: bool
) -> tuple[Snapshot, EpochHistory]:
    """Returns the newest snapshot of `steps` that is intact, and the new `epochs`; moves damaged ones out of the way.

    See `_continue_schedule` for `epochs` and `reschedule`.
    """
    snapshot, damaged = checkpoints.restore_newest(steps, experiment.abstract_snapshot, experiment.first_snapshot)
    step = int(snapshot.state.step)
    started = math.ceil(step / experiment.steps_per_epoch)
    if started > experiment.config.epochs:
        raise UserError(
            f'config.epochs must be at least {started}, the number of epochs that this run has trained or started, '
            f'got {experiment.config.epochs}'
        )
    epochs = _continue_schedule(experiment, step, epochs, reschedule)
    processes.check_identical({'the newest intact checkpoint': str(snapshot.state.step)})
    if damaged and processes.is_main():
        checkpoints.move_to_damaged(damaged)
    processes.check_identical({'the damaged checkpoints': str(damaged)})  # No process continues before they are moved.
    logging.info('Resuming from the checkpoint %s', _describe_position(experiment, snapshot))
    return snapshot, epochs


def _continue_schedule(experiment: Experiment, step: int, history: EpochHistory, reschedule: bool) -> EpochHistory:
    """Returns the history of the number of epochs if the run resumes at `step` with `config.epochs`.

    Args:
      experiment: The experiment of the run.
      step: The step at which it resumes.
      history: The history before this start.
      reschedule: Whether the learning rate may jump from one schedule to another.

    Raises:
      UserError: the learning rate would jump.
    """
    epochs = experiment.config.epochs
    past = [(first, length) for first, length in history if first < step]  # The updates after `step` were lost.
    if past in ([], [(0, epochs)]):
        return [(0, epochs)]
    rates = [
        experiment.learning_rates(step, length)[first:end]
        for (first, length), (end, _) in itertools.pairwise([*past, (step, epochs)])
    ]
    # Whether a schedule depends on the number of epochs can only be seen from its values: it may be the user's own.
    if np.array_equal(np.concatenate(rates), experiment.learning_rates(step, epochs)):
        return [(0, epochs)]
    before, last = past[-1][1], rates[-1][-1]
    if before == epochs:
        return past
    if step < epochs * experiment.steps_per_epoch:
        jump = f'jumps from {last:.3g} to {experiment.learning_rate(step):.3g} at step {step:,}'
    else:
        jump = f'ends at {last:.3g} instead of {experiment.learning_rate(step - 1):.3g}'
    if not reschedule:
        raise UserError(
            f'config.epochs must be {before}, as in the run so far, got {epochs}: the schedule depends on the number '
            f'of epochs, so the learning rate {jump}, unlike in a run of {epochs} epochs; to accept that, add '
            '--reschedule'
        )
    logging.warning('Changing the schedule from %d to %d epochs: the learning rate %s', before, epochs, jump)
    return [*past, (step, epochs)]


def _describe_position(experiment: Experiment, snapshot: Snapshot) -> str:
    step, epochs = int(snapshot.state.step), snapshot.epoch.number
    in_epoch = step - epochs * experiment.steps_per_epoch
    if in_epoch:
        return f'of step {step:,}, {in_epoch:,} steps into epoch {epochs + 1}'
    return f'of epoch {epochs} (step {step:,})'


def _end_with(experiment: Experiment, checkpoints: Checkpoints, snapshot: Snapshot, best: Snapshot | None) -> Snapshot:
    """Returns the snapshot that the run ends with, which may be that of the best epoch.

    Args:
      experiment: The experiment of the run.
      checkpoints: Its checkpoints.
      snapshot: The last snapshot.
      best: The best one, if this process has trained it, because its checkpoint may be missing.
    """
    step = result_step(experiment, snapshot)
    if step == snapshot.state.step:
        return snapshot
    logging.info('Restoring the best epoch as the result: step %s', f'{step:,}')
    if best is not None and best.state.step == step and step not in checkpoints.steps():
        return best
    return checkpoints.restore(step, experiment.abstract_snapshot)


def _write_report(model: RestoredModel) -> Path | None:
    """Writes the report, and returns the path of its page, or None if it cannot be written."""
    # Importing Matplotlib takes a second, and not every run needs it.
    from mnist_jax.report.run_page import write_report

    try:
        page = write_report(model)
    except (OSError, UserError) as error:  # The run itself is complete.
        logging.error('The report cannot be written (%s); to try again, use --mode=report', error)
        return None
    logging.info('Report: %s', page)
    return page


def _log_start(experiment: Experiment, workdir: Path) -> None:
    source, chunks, devices = experiment.source, experiment.config.chunks, len(experiment.replicas)
    logging.info('devices   %s', experiment.replicas)
    if not preserves_bits(chunks, devices):
        logging.info(
            'bits      results will differ bitwise from those of one device: config.chunks=%d on %d devices does not '
            'give each device 1, 2, 4, 8, ... chunks',
            chunks,
            devices,
        )
    if not (experiment.replicas.deterministic or experiment.config.deterministic):
        logging.warning(
            'bits      products have reduced precision, and kernels are selected by their measured time, so two runs '
            'may differ; --config.deterministic=True prevents both'
        )
    if experiment.steps_per_call > 1:
        logging.info('steps     %d per call', experiment.steps_per_call)
    sizes = ', '.join(f'{name} {source.split(name).size:,}' for name in source.split_names)
    logging.info('dataset   %s: %s%s', source.name, sizes, '; on the devices' if experiment.on_device else '')
    if overlaps := describe_overlaps([overlap._asdict() for overlap in source.overlaps()]):
        logging.warning('overlap   %s', overlaps)
    for doubt in source.doubts():
        logging.warning('splits    %s', doubt)
    if experiment.teacher is not None:
        logging.info('teachers  %s', ', '.join(experiment.config.distillation.workdirs))
    logging.info('workdir   %s', workdir)
    for line in experiment.layer_table().splitlines():
        logging.info('%s', line)
