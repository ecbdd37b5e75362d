"""Wrong arguments of the benchmarks are refused before anything is measured."""

import argparse

import pytest
from conftest import ROOT

from mnist_jax.config import load_module

flags = load_module(ROOT / 'benchmarks' / 'flags.py', 'benchmark_flags')


def test_right_arguments_are_read():
    assert flags.names(['a', 'b', 'c'])('c,a') == ('c', 'a')
    assert flags.at_least(3)('3') == 3
    assert flags.config_path('configs/mlp.py') == 'configs/mlp.py'


@pytest.mark.parametrize(
    ('parse', 'text', 'message'),
    [
        (flags.names(['a', 'b']), 'a,,b', 'must be some of a, b, got a,,b'),
        (flags.at_least(3), '2', 'must be a whole number from 3, got 2'),
        (flags.at_least(3), '1e3', 'must be a whole number from 3, got 1e3'),
        (flags.config_path, 'typo', "config file 'typo' does not exist"),
    ],
)
def test_wrong_arguments_are_refused(parse, text, message):
    with pytest.raises(argparse.ArgumentTypeError, match=message):
        parse(text)
