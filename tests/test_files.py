"""The paths that users give, and where they enter the program."""

import os
import shutil
from pathlib import Path

import pytest

import mnist_jax
from mnist_jax.config import load_config
from mnist_jax.errors import UserError
from mnist_jax.evaluate import evaluate_workdir
from mnist_jax.files import user_path
from mnist_jax.train import train
from mnist_jax.workdir.finished_runs import find_runs
from mnist_jax.workdir.metrics_log import read_metrics
from mnist_jax.workdir.results import read_result


@pytest.fixture
def home(tmp_path, monkeypatch) -> Path:
    """A home directory; the current directory is another one."""
    monkeypatch.setenv('XDG_CACHE_HOME', os.path.expanduser('~/.cache'))  # with the compiled kernels
    monkeypatch.setenv('HOME', str(tmp_path / 'home'))
    (tmp_path / 'home').mkdir()
    (tmp_path / 'here').mkdir()
    monkeypatch.chdir(tmp_path / 'here')
    return tmp_path / 'home'


def test_a_tilde_is_the_home_directory(home):
    assert user_path('~/runs/a', 'workdir') == user_path(Path('~/runs/a'), 'workdir') == home / 'runs' / 'a'
    assert user_path('~', 'workdir') == home
    assert user_path('runs/~a', 'workdir') == Path('runs/~a')
    assert user_path('a~', 'workdir') == Path('a~')


def test_a_name_with_a_tilde_that_is_not_a_user(home):
    with pytest.raises(UserError, match=r"^--input must not start with ~ .* got '~x.png'; .* use './~x.png'$"):
        user_path('~x.png', '--input')
    path = user_path('./~x.png', '--input')
    assert path == user_path(path, '--input') == home.parent / 'here' / '~x.png'
    Path('~x.png').touch()
    assert user_path('~x.png', '--input') == Path('~x.png')  # like a shell


@pytest.mark.parametrize('path', ['gs://bucket/x', 's3://bucket', 'hdfs://x', 'file:///tmp/x', Path('gs://bucket/x')])
def test_a_path_that_is_not_local_is_refused(path):
    with pytest.raises(UserError) as error:
        user_path(path, '--workdir')
    assert str(error.value) == (
        f'--workdir must be a local path, got {str(path)!r}; mount the bucket, for example with gcsfuse or rclone, or '
        'copy it'
    )


def test_a_colon_in_a_path_is_allowed():
    for text in ('runs/12:30', 'a:b', 'C:/runs', 'runs/x://y'):
        assert user_path(text, '--workdir') == Path(text)
    with pytest.raises(UserError, match='must not contain a NUL character'):
        user_path('a\0', '--workdir')


def test_every_function_that_takes_a_path_expands_a_tilde(home, trained, small):
    shutil.copytree(trained, home / 'run')
    run = mnist_jax.load('~/run')
    assert run.workdir == home / 'run' and run.metrics == read_metrics(trained)
    assert find_runs(['~/r*']) == [home / 'run']
    assert read_result(Path('~/run')) == run.result
    (home / 'mine.py').write_text('from mnist_jax.config import default_config as get_config\n')
    assert load_config('~/mine.py').model.name == 'cnn'
    train(small(epochs=0), '~/new/run')
    assert (home / 'new' / 'run' / 'eval.json').exists()
    (home / 'new' / 'run' / 'eval.json').unlink()
    evaluate_workdir('~/new/run')
    assert (home / 'new' / 'run' / 'eval.json').exists()
    assert list((home.parent / 'here').iterdir()) == []


def test_a_config_keeps_the_path_as_it_was_written(home, small, data_dir):
    (home / 'data').symlink_to(data_dir)
    train(small(epochs=0, dataset__data_dir='~/data'), 'run')
    assert '"data_dir": "~/data"' in Path('run', 'config.json').read_text()


def test_no_function_writes_to_a_bucket(home, small):
    for function in (mnist_jax.load, read_metrics, read_result, load_config, evaluate_workdir):
        with pytest.raises(UserError, match="must be a local path, got 'gs://bucket/x'"):
            function('gs://bucket/x')
    with pytest.raises(UserError, match=r"^--workdir must be a local path, got 'gs:/bucket/x'"):
        train(small(), Path('gs://bucket/x'))
    with pytest.raises(UserError, match=r"^config.dataset.data_dir must be a local path, got 'gs://bucket'"):
        train(small(dataset__data_dir='gs://bucket'), 'run')
    assert list((home.parent / 'here').iterdir()) == []
