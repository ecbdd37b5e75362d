"""Constructors selected by name, with arguments that are checked against their signatures."""

import functools
from collections.abc import Sequence
from typing import Literal

import pytest

from mnist_jax import factory
from mnist_jax.errors import UserError
from mnist_jax.factory import Count, Rate, build, choose, parse_value


def example(
    size: int, rate: Rate = 0.5, counts: Sequence[Count] = (), kind: Literal['a', 'b'] = 'a', flag: bool = False
):
    return size, rate, counts, kind, flag


def annotated(
    level: Literal[3, 5] = 3, sizes: tuple[int, ...] = (), pair: tuple[int, str] = (1, 'a'), most: int | None = None
):
    return level, sizes, pair, most


TABLE = {'example': example, 'annotated': annotated}


def test_fields_are_passed_to_the_constructor_that_the_name_selects():
    config = {'name': 'example', 'size': 3, 'rate': 0, 'counts': [1, 2], 'kind': 'b'}
    assert build('part', TABLE, config) == (3, 0, [1, 2], 'b', False)
    assert build('part', TABLE, {'name': 'example', 'flag': True}, size=7) == (7, 0.5, (), 'a', True)
    config = {'name': 'annotated', 'level': 5, 'sizes': [1, 2], 'pair': (2, 'b'), 'most': 7}
    assert build('part', TABLE, config) == (5, [1, 2], (2, 'b'), 7)
    assert build('part', TABLE, {'name': 'annotated', 'most': None}) == (3, (), (1, 'a'), None)
    assert parse_value('level', '5', Literal[3, 5]) == 5 and parse_value('kind', '5', Literal['5', 'b']) == '5'


@pytest.mark.parametrize(
    ('config', 'message'),
    [
        ({}, 'part.name must be one of annotated, example, got None'),
        ({'name': 'exampel'}, "part.name must be one of annotated, example, got 'exampel' (did you mean 'example'?)"),
        ({'name': 'annotated', 'level': 4}, 'part.level must be one of 3, 5, got 4'),
        ({'name': 'annotated', 'level': '3'}, "part.level must be one of 3, 5, got '3'"),
        ({'name': 'annotated', 'sizes': 'ab'}, "part.sizes must be a tuple, got 'ab'"),
        ({'name': 'annotated', 'sizes': (1, 'b')}, "part.sizes[1] must be of type int, got 'b'"),
        ({'name': 'annotated', 'pair': (1,)}, 'part.pair must have 2 items, got (1,)'),
        ({'name': 'annotated', 'pair': (1, 2)}, 'part.pair[1] must be of type str, got 2'),
        ({'name': 'annotated', 'most': 'x'}, "part.most must be of type int, got 'x'"),
        ({'name': 'example'}, 'part.size is missing; it must be of type int'),
        ({'name': 'example', 'size': 1.5}, 'part.size must be of type int, got 1.5'),
        ({'name': 'example', 'size': True}, 'part.size must be of type int, got True'),
        ({'name': 'example', 'size': 1, 'rate': 1.0}, 'part.rate must be at least 0 and less than 1, got 1.0'),
        ({'name': 'example', 'size': 1, 'rate': 'x'}, "part.rate must be of type float, got 'x'"),
        ({'name': 'example', 'size': 1, 'rate': float('nan')}, 'part.rate must be at least 0 and less than 1, got nan'),
        ({'name': 'example', 'size': 1, 'counts': 4}, 'part.counts must be a tuple, got 4'),
        (
            {'name': 'example', 'size': 1, 'counts': (1, -1)},
            'part.counts[1] must be an integer from 0 to 2147483647, got -1',
        ),
        ({'name': 'example', 'size': 1, 'kind': 'c'}, "part.kind must be one of a, b, got 'c'"),
        ({'name': 'example', 'size': 1, 'flag': 1}, 'part.flag must be of type bool, got 1'),
        (
            {'name': 'example', 'size': 1, 'sise': 2},
            "part.sise is not a field for 'example' (did you mean 'size'?); "
            'the fields are: counts, flag, kind, rate, size',
        ),
    ],
)
def test_a_wrong_field_is_an_error_that_says_what_it_must_be(config, message):
    with pytest.raises(UserError) as error:
        build('part', TABLE, config)
    assert str(error.value) == message


def test_an_argument_that_the_program_passes_is_not_a_config_field():
    with pytest.raises(UserError, match=r'^part\.size is not a field'):
        build('part', TABLE, {'name': 'example', 'size': 1}, size=2)


def test_choose_returns_the_value_for_a_name():
    assert choose('--mode', 'a', {'a': 1, 'b': 2}) == 1


def test_a_constructor_may_take_fields_of_any_name():
    table = {'any': lambda size, *rest, **fields: (size, rest, fields)}
    assert build('part', table, {'name': 'any', 'wide': 3}, size=7) == (7, (), {'wide': 3})
    with pytest.raises(UserError, match=r'part\.size is missing; it must be of any type'):
        build('part', table, {'name': 'any', 'wide': 3})


SCALE = 1.0


def scaled(number):
    return SCALE * number


def make_part(factor, limit=7):
    def part(number, offset=factor):
        return min(scaled(number) * factor + offset, limit)

    return part


class UsesAFunction:
    def method(self, number):
        return [scaled(item) for item in range(number)]


@pytest.mark.parametrize('part', [make_part(2.0), functools.partial(make_part(2.0), 1), UsesAFunction])
def test_the_digest_of_code_covers_the_values_and_the_functions_that_it_uses(monkeypatch, part):
    first = factory.code_sha256([part])
    assert first == factory.code_sha256([part]) != factory.code_sha256([make_part(3.0)])
    monkeypatch.setitem(globals(), 'SCALE', 2.0)
    second = factory.code_sha256([part])
    monkeypatch.setitem(globals(), 'scaled', lambda number: number)
    assert len({first, second, factory.code_sha256([part])}) == 3


CACHE = None


def cached():
    global CACHE
    CACHE = 1 if CACHE is None else CACHE
    return CACHE


def test_a_cache_is_not_part_of_the_code():
    before = factory.code_sha256([cached])
    assert cached() == 1 and factory.code_sha256([cached]) == before


def test_an_argument_that_the_section_reserves_is_an_error():
    with pytest.raises(UserError) as error:
        build('section', {'own': lambda size=1, rate=0.5: None}, {'name': 'own', 'size': 2}, reserved=('rate', 'limit'))
    assert str(error.value) == (
        "the arguments of 'own' must not be called limit, rate, which section uses for all of its parts, got 'rate'"
    )
