"""The house: its map in the README is complete, and imports only point down it."""

import ast
import re

from conftest import ROOT

PACKAGE = ROOT / 'mnist_jax'


def floors():
    """The floor of each room by the map in the README, from the top."""
    found = {}
    for floor, line in enumerate(
        re.findall(r'^\| `mnist_jax/([^|]*)\|', (ROOT / 'README.md').read_text(), re.MULTILINE)
    ):
        for name in re.findall(r'[\w/]+', line.replace('.py', '')):
            found[name.removeprefix('mnist_jax').strip('/')] = floor
    return found


def imports(path):
    """The rooms that a file imports."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or '').split('.')[0] == 'mnist_jax':
            inner = node.module.split('.')[1:2]
            yield from inner or [alias.name for alias in node.names]


def room(path):
    return path.relative_to(PACKAGE).parts[0].removesuffix('.py')


def test_the_map_has_every_room():
    rooms = {room(path) for path in PACKAGE.iterdir() if not path.name.startswith('__')}
    assert set(floors()) == rooms


def test_imports_only_point_down():
    found = floors()
    for path in PACKAGE.rglob('*.py'):
        if path != PACKAGE / '__init__.py':
            up = [name for name in imports(path) if found[name] < found[room(path)]]
            assert not up, f'{path} imports {up}'


def test_no_file_is_over_300_lines_and_no_function_over_60():
    for path in [*PACKAGE.rglob('*.py'), *(ROOT / 'configs').glob('*.py'), *(ROOT / 'tests').rglob('*.py')]:
        text = path.read_text()
        assert len(text.splitlines()) <= 300, path
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef):
                assert node.end_lineno - node.lineno + 1 <= 60, (path, node.name)
