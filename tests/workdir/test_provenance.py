"""What a workdir keeps of where its run comes from."""

import importlib.metadata
import json

from conftest import make_small

from mnist_jax import train
from mnist_jax.workdir.provenance import FIELDS, MAX_STARTS, read_provenance, record_start


def test_each_start_is_on_record(data_dir, tmp_path):
    train.train(make_small(data_dir, epochs=1), tmp_path)
    train.train(make_small(data_dir, epochs=2), tmp_path)
    first, second = read_provenance(tmp_path)
    assert (first['step'], second['step']) == (0, 5) and first['began'] <= second['began']
    assert first['devices'] == '2 (CPU, virtual)' and first['command'].endswith(', from Python')
    assert first['versions']['jax'] == importlib.metadata.version('jax')
    assert first['commit'] == 'unknown' or len(first['commit'].split()[0]) == 40


def test_the_command_of_the_program_is_quoted(monkeypatch, tmp_path):
    monkeypatch.setattr('sys.argv', ['/x/mnist_jax/main.py', '--config=a b.py', '--config.model.hidden=(8,)'])
    record_start(tmp_path, 0, 'none')
    (start,) = read_provenance(tmp_path)
    assert start['command'] == "python -m mnist_jax.main '--config=a b.py' '--config.model.hidden=(8,)'"


def test_what_is_damaged_is_left_out(tmp_path):
    assert read_provenance(tmp_path) == []
    for text in ('', '[', '{}', '[1]', '[{"began": 1}]', '[' * 100_000):
        (tmp_path / 'provenance.json').write_text(text)
        assert read_provenance(tmp_path) == []
    for step in range(MAX_STARTS + 5):
        starts = [*read_provenance(tmp_path)[1 - MAX_STARTS :]]
        (tmp_path / 'provenance.json').write_text(json.dumps([*starts, example(step)]))
    record_start(tmp_path, 7, 'none')
    steps = [start['step'] for start in read_provenance(tmp_path)]
    assert len(steps) == MAX_STARTS and steps[-2:] == [MAX_STARTS + 4, 7]


def example(step):
    texts = dict.fromkeys(FIELDS, '')
    return {**texts, 'step': step, 'versions': {}}
