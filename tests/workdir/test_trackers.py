"""Experiment trackers: what each tracker's own reader finds, and runs whose trackers fail."""

import json
import subprocess
import sys
import time
import types
from pathlib import Path

import pytest
from conftest import make_small

from mnist_jax.config import config_fields
from mnist_jax.errors import Interrupted, UserError
from mnist_jax.train import train
from mnist_jax.workdir import trackers
from mnist_jax.workdir.metrics_log import COLUMNS, read_metrics
from mnist_jax.workdir.trackers import TRACKERS

ALL = ('tensorboard', 'wandb', 'mlflow', 'trackio')
METRICS = COLUMNS[2:]
FIGURES = ('confusion_matrix', 'learning_curves')


@pytest.fixture
def tracked(data_dir, tmp_path_factory):
    """A run of three epochs: TensorBoard alone in the first, all trackers in the others, with a start for each."""
    directory = tmp_path_factory.mktemp('trackers')
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv('TRACKIO_DIR', str(directory / 'trackio'))
        patch.setenv('MLFLOW_TRACKING_URI', f'sqlite:///{directory}/mlflow.db')
        patch.setenv('WANDB_MODE', 'offline')
        patch.chdir(directory)
        for client in ALL:  # after TRACKIO_DIR is set, which trackio reads only once
            pytest.importorskip(client)
        workdir = directory / 'study' / 'trials' / '0001-seed0'
        options = {'dataset__validation': 'train[300:400]'}
        train(make_small(data_dir, epochs=1, trackers=('tensorboard',), **options), workdir)
        train(make_small(data_dir, epochs=2, trackers=ALL, **options), workdir)
        config = make_small(data_dir, epochs=3, trackers=ALL, **options)
        train(config, workdir, report=True)
        yield config, workdir, directory


def wanted(workdir):
    """Returns the values of each metric by step, as metrics.csv has them, and the results on the test split."""
    rows = read_metrics(workdir)
    result = json.loads((workdir / 'eval.json').read_text())
    assert [row['step'] for row in rows] == [5, 10, 15]
    metrics = {name: [(int(row['step']), row[name]) for row in rows if name in row] for name in METRICS}
    return metrics, {'test_accuracy': result['accuracy'], 'test_loss': result['loss']}


def test_each_tracker_reads_what_a_run_wrote_in_all_of_its_starts(tracked):
    read_tensorboard(*tracked)
    read_wandb(*tracked)
    read_mlflow(*tracked)
    read_trackio(*tracked)


def read_tensorboard(config, workdir, directory):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from tensorboard.plugins.hparams import metadata

    metrics, results = wanted(workdir)
    reader = EventAccumulator(str(workdir / 'tensorboard')).Reload()
    for name, values in metrics.items():
        assert [(event.step, pytest.approx(event.value)) for event in reader.Scalars(name)] == values, name
    for name, value in results.items():
        assert reader.Scalars(name)[-1].value == pytest.approx(value)
    assert set(FIGURES) <= set(reader.Tags()['images'])
    contents = reader.SummaryMetadata('_hparams_/session_start_info').plugin_data.content
    hparams = metadata.parse_session_start_info_plugin_data(contents).hparams
    assert hparams['optimizer.learning_rate'].number_value == config.optimizer.learning_rate
    assert hparams['model.hidden'].string_value == '(16,)'
    contents = reader.SummaryMetadata('_hparams_/experiment').plugin_data.content
    names = {info.name.tag for info in metadata.parse_experiment_plugin_data(contents).metric_infos}
    assert {'validation_accuracy', 'test_accuracy'} <= names
    assert '_hparams_/session_end_info' in reader.summary_metadata


def read_wandb(config, workdir, directory):
    metrics, results = wanted(workdir)
    history, summary = [], {}
    logs = sorted((workdir / 'wandb').glob('offline-run-*/*.wandb'))
    assert len(logs) == 2 and len({log.name for log in logs}) == 1  # of one run
    for log in logs:
        command = [sys.executable, '-m', 'wandb', 'leet', 'inspect', '--json', str(log)]
        lines = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
        for record in map(json.loads, lines):
            values = record.get('history', {}).get('item', {})
            history += [values] if 'train_loss' in values else []
            summary |= record.get('summary', {}).get('update', {})
            if 'run' in record:
                saved = record['run']['config']['update']
                assert record['run']['display_name'] == '0001-seed0' and record['run']['run_group'] == 'study'
    for name, values in metrics.items():
        assert [(row['_step'], row[name]) for row in history if name in row] == values, name
    assert {name: summary[name] for name in results} == results
    assert {f'figures/{name}._type' for name in FIGURES} <= set(summary)
    assert saved['optimizer.learning_rate'] == config.optimizer.learning_rate and saved['model.hidden'] == '(16,)'


def read_mlflow(config, workdir, directory):
    import mlflow

    metrics, results = wanted(workdir)
    client = mlflow.MlflowClient(f'sqlite:///{directory}/mlflow.db')
    (run,) = client.search_runs([client.get_experiment_by_name('mnist_jax').experiment_id])
    assert run.info.run_name == '0001-seed0' and run.data.tags['group'] == 'study'
    assert run.info.status == 'FINISHED'
    for name, values in metrics.items():
        assert [(metric.step, metric.value) for metric in client.get_metric_history(run.info.run_id, name)] == values
    assert {name: run.data.metrics[name] for name in results} == results
    # Fields that a resumed run may change keep the values that the run had when MLflow got to know it.
    saved = {name: str(value) for name, value in config_fields(config) if name != 'epochs'}
    assert {name: run.data.params[name] for name in saved} == saved
    paths = {
        file.path for folder in ('', 'figures', 'report') for file in client.list_artifacts(run.info.run_id, folder)
    }
    assert {f'figures/{name}.png' for name in FIGURES} <= paths
    assert {'config.json', 'metrics.csv', 'eval.json', 'provenance.json', 'report/index.html'} <= paths
    kept = client.download_artifacts(run.info.run_id, 'metrics.csv', str(directory))
    assert Path(kept).read_text() == (workdir / 'metrics.csv').read_text()


def read_trackio(config, workdir, directory):
    import trackio
    from trackio.sqlite_storage import SQLiteStorage

    metrics, results = wanted(workdir)
    (run,) = trackio.Api().runs('mnist_jax')
    assert run.name.startswith('0001-seed0-')
    assert run.config['optimizer.learning_rate'] == config.optimizer.learning_rate
    logs = SQLiteStorage.get_logs('mnist_jax', run.name, run_id=run.id)
    for name, values in metrics.items():
        assert [(log['step'], log[name]) for log in logs if name in log] == values, name
    assert {name: logs[-1][name] for name in results} == results
    assert {f'figures/{name}' for name in FIGURES} <= set(logs[-1])


def test_tensorboard_keeps_starts_within_the_same_second(small, tmp_path, monkeypatch):
    reader = pytest.importorskip('tensorboard.backend.event_processing.event_accumulator')
    stopped = types.SimpleNamespace(time=lambda: 1e9)
    monkeypatch.setattr('tensorboardX.event_file_writer.time', stopped)
    for epochs in (1, 2, 3):
        train(small(epochs=epochs), tmp_path)
    events = reader.EventAccumulator(str(tmp_path / 'tensorboard')).Reload().Scalars('train_loss')
    assert [event.step for event in events] == [5, 10, 15]


class Recorder:
    """A tracker that keeps what it gets."""

    def __init__(self, calls, run):
        self.calls, self.destination = calls, ''
        calls.append(('open', run.name, run.step))

    def log(self, metrics, step):
        self.calls.append(('log', step, sorted(metrics)))

    def finish(self, ending):
        self.calls.append(('finish', ending.status, sorted(ending.results)))


class FailingRecorder(Recorder):
    """A tracker that cannot write anything."""

    def log(self, metrics, step):
        raise ConnectionError('no route to host')

    def finish(self, ending):
        sys.exit(1)  # as some clients do


def test_a_tracker_of_ones_own_gets_epochs_and_the_end(small, tmp_path, monkeypatch):
    calls = []
    monkeypatch.setitem(TRACKERS, 'own', lambda run: Recorder(calls, run))
    names = sorted(name for name in METRICS if not name.startswith('validation'))

    def stop(step, request):
        if step == 7:
            request.signal = 15

    with pytest.raises(Interrupted):
        train(small(epochs=2, trackers=('own',)), tmp_path, on_step=stop)
    assert calls == [('open', tmp_path.name, 0), ('log', 5, names), ('finish', 'interrupted', [])]
    calls.clear()
    train(small(epochs=2, trackers=('own',)), tmp_path)
    results = ['test_accuracy', 'test_loss']
    assert calls == [('open', tmp_path.name, 5), ('log', 10, names), ('finish', 'finished', results)]
    calls.clear()
    train(small(epochs=2, trackers=('own',)), tmp_path)  # It was finished, and the tracker knows.
    assert calls == []


def test_epochs_that_were_not_written_before_a_kill_are_written_by_the_next_start(small, tmp_path, monkeypatch):
    calls = []
    monkeypatch.setitem(TRACKERS, 'own', lambda run: Recorder(calls, run))
    train(small(epochs=3, trackers=('own',)), tmp_path)
    path = tmp_path / 'tracking.json'
    known = json.loads(path.read_text())
    assert known['written'] == {'own': 15} and known['ended'] == {'own': 15}
    path.write_text(json.dumps({**known, 'written': {'own': 5}}))
    calls.clear()
    train(small(epochs=4, trackers=('own',)), tmp_path)
    assert [step for kind, step, _ in calls if kind == 'log'] == [10, 15, 20]
    path.write_text('{"id": "a b", "written": [], "ended": 3}')  # damaged: it is another run for the tracker
    calls.clear()
    train(small(epochs=5, trackers=('own',)), tmp_path)
    assert [step for kind, step, _ in calls if kind == 'log'] == [5, 10, 15, 20, 25]


def test_a_tracker_that_fails_never_stops_a_run(small, tmp_path, monkeypatch, caplog):
    def broken(run):
        raise RuntimeError('no license\nsecond line')

    monkeypatch.setitem(TRACKERS, 'broken', broken)
    monkeypatch.setitem(TRACKERS, 'failing', lambda run: FailingRecorder([], run))
    plain = train(small(epochs=2, trackers=()), tmp_path / 'plain')
    assert not list((tmp_path / 'plain' / 'tensorboard').iterdir())
    assert train(small(epochs=2, trackers=('broken', 'failing')), tmp_path / 'run') == plain
    assert (
        caplog.text.count('broken cannot be used; nothing of this run is recorded there: no license second line\n') == 1
    )
    assert caplog.text.count('failing cannot be written to: no route to host') == 2
    assert caplog.text.count('failing cannot be written to: 1') == 1
    assert caplog.text.count('WARNING') == 4


def test_a_tracker_that_hangs_is_not_waited_for(small, tmp_path, monkeypatch, caplog):
    monkeypatch.setitem(TRACKERS, 'hanging', lambda run: time.sleep(600))
    monkeypatch.setattr(trackers, 'FINISH_SECONDS', 0.1)
    assert train(small(epochs=1, trackers=('hanging',)), tmp_path)['step'] == 5
    assert 'hanging did not finish within 0.1 s: what it had not written by then is lost' in caplog.text
    caplog.clear()
    train(small(epochs=1, trackers=('hanging',)), tmp_path / 'next')  # does not wait again
    assert 'hanging' not in caplog.text


@pytest.mark.parametrize(
    ('names', 'message'),
    [
        ((1,), 'each of config.trackers must be one of mlflow, tensorboard, trackio, wandb, got 1'),
        (('wandbb',), r"one of mlflow, tensorboard, trackio, wandb, got 'wandbb' \(did you mean 'wandb'\?\)"),
        (('mlflow',), "config.trackers='mlflow' needs the package no_such_package: pip install no_such_package"),
    ],
)
def test_wrong_trackers_are_refused_before_anything_is_written(small, tmp_path, monkeypatch, names, message):
    monkeypatch.setitem(trackers.PACKAGES, 'mlflow', 'no_such_package')
    with pytest.raises(UserError, match=message):
        train(small(trackers=names), tmp_path / 'run')
    assert not (tmp_path / 'run').exists()
