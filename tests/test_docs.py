"""The documentation: the links, paths, names, flags and numbers in it are right, and its examples run."""

import ast
import json
import pkgutil
import re
import shlex
import subprocess
import sys
from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import pytest
from conftest import ROOT, environment
from ml_collections import ConfigDict
from test_layout import LEVELS

from mnist_jax import commands
from mnist_jax.config import config_fields, default_config
from mnist_jax.data.source import SOURCES
from mnist_jax.factory import Width, arguments
from mnist_jax.inference import endpoint
from mnist_jax.learning.losses import LOSSES
from mnist_jax.learning.optimizers import OPTIMIZERS
from mnist_jax.learning.schedules import SCHEDULES
from mnist_jax.models.layer_table import list_layers
from mnist_jax.models.layers import Dense, Flatten
from mnist_jax.training.plan import make_model
from mnist_jax.workdir.config_sections import SECTIONS

KERNELS = ROOT / 'mnist_jax' / 'kernels' / 'README.md'  # part of docs/kernels.md
PAGES = {
    str(path.relative_to(ROOT)): path.read_text()
    for path in (ROOT / 'README.md', ROOT / 'CONTRIBUTING.md', KERNELS, *sorted((ROOT / 'docs').rglob('*.md')))
}
every_page = pytest.mark.parametrize('page', PAGES)

DIRECTORIES = 'mnist_jax|configs|docs|examples|tests|benchmarks'
SUFFIXES = ('.py', '.md', '.sh', '.toml', '.yml', '.c', '.h', '.ipynb')
IGNORED = (ROOT / '.gitignore').read_text().split()
REPOSITORY_FILES = {
    path.name for name in DIRECTORIES.split('|') for path in (ROOT / name).rglob('*') if '.venv' not in path.parts
} | {path.name for path in ROOT.iterdir()}

DEFAULT = default_config()
FIELDS = {name for name, _ in config_fields(DEFAULT)} | {
    f'{section}.{argument}'
    for section, parts in SECTIONS.items()
    for constructor in parts.table.values()
    for argument in arguments(constructor, parts.extra)
}
SECTION_NAMES = {name for name, value in DEFAULT.items() if isinstance(value, ConfigDict)}
BENCHMARK_FLAGS = {
    path.name: set(re.findall(r"'--([\w-]+)'", path.read_text())) for path in (ROOT / 'benchmarks').glob('*.py')
}
PROGRAM = re.compile(r'(?<!\S)(mnist-jax|\S*python -m mnist_jax\.main|\./launch\.sh)(?! (test|docs|setup)\b)')
# Flags of absl and of other programs that the text mentions.
OTHER_FLAGS = {'faults', 'flagfile', 'help', *set().union(*BENCHMARK_FLAGS.values())}

RECIPES = (ROOT / 'RESULTS.md').read_text().partition('## Recipes')[2]
DATASETS = {
    'mnist': 'MNIST',
    'fashion_mnist': 'Fashion-MNIST',
    'digits': 'scikit-learn digits',
    'kaggle_digits': "Kaggle's CSV",
}


def code_blocks(text: str) -> list[tuple[str, str]]:
    """Returns the info string and the contents of each fenced block, and of each indented one."""
    fenced = re.findall(r'^```([^\n]*)\n(.*?)^```$', text, re.MULTILINE | re.DOTALL)
    return fenced + [('', line) for line in re.findall(r'^ {4}(\S.*)$', prose(text), re.MULTILINE)]


def prose(text: str) -> str:
    """Returns the text without its fenced blocks."""
    return re.sub(r'^```.*?^```$', '', text, flags=re.MULTILINE | re.DOTALL)


def inline_code(text: str) -> list[str]:
    """Returns the contents of all `...` in the text."""
    return re.findall(r'`([^`\n]+)`', prose(text))


def table(text: str, first_header: str) -> list[dict[str, str]]:
    """Returns the rows of the Markdown table whose first column has this header."""
    lines = text.splitlines()
    start = next(number for number, line in enumerate(lines) if line.startswith(f'| {first_header} |'))
    header, _, *rows = ([cell.strip() for cell in line.strip('|').split('|')] for line in _table_lines(lines[start:]))
    return [dict(zip(header, row, strict=True)) for row in rows]


def _table_lines(lines: Sequence[str]) -> list[str]:
    end = next((number for number, line in enumerate(lines) if not line.startswith('|')), len(lines))
    return list(lines[:end])


def slug(heading: str) -> str:
    """Returns the anchor of a heading."""
    return re.sub(r'[^\w\- ]', '', heading.lower()).strip().replace(' ', '-')


@every_page
def test_links_lead_to_files_and_headings(page):
    for target in re.findall(r'\[[^\]]*\]\(([^)\s]+)\)', prose(PAGES[page])):
        if re.match(r'https?://', target):
            continue
        file, _, anchor = target.partition('#')
        path = (ROOT / page).parent / file if file else ROOT / page
        assert path.exists(), target
        if anchor:
            assert anchor in map(slug, re.findall(r'^#+ (.*)$', path.read_text(), re.MULTILINE)), target


@every_page
def test_paths_exist(page):
    text = PAGES[page]
    for path in re.findall(rf'(?<![\w./-])((?:(?:{DIRECTORIES})/|\.ci/)[\w./*-]*)', text):
        path = path.rstrip('.')
        assert path in IGNORED or any(ROOT.glob(path.rstrip('/'))), path
    for code in inline_code(text):
        if re.fullmatch(r'\w[\w.-]*', code) and (code.endswith(SUFFIXES) or code.startswith('requirements')):
            assert code in REPOSITORY_FILES, code
    for info, block in code_blocks(text):
        if info == 'text':
            for path in re.findall(r'[\w/]+\.py\b', block):
                assert (ROOT / 'mnist_jax' / path).exists() or (ROOT / path).exists(), path


@every_page
def test_names_of_the_package_resolve(page):
    for name in re.findall(r'\bmnist_jax(?:\.\w+)+', PAGES[page]):
        pkgutil.resolve_name(name)
    for info, block in code_blocks(PAGES[page]):
        if info.startswith('python'):
            for node in ast.walk(ast.parse(block)):
                if isinstance(node, ast.ImportFrom) and node.module.startswith('mnist_jax'):
                    for alias in node.names:
                        pkgutil.resolve_name(f'{node.module}.{alias.name}')


def command_lines(text: str) -> list[str]:
    """Returns the commands in code blocks, without comments; continued lines are joined."""
    lines = [line for _, block in code_blocks(text) for line in block.replace('\\\n', ' ').splitlines()]
    return [re.sub(r'(^|\s)#.*$', '', line) for line in lines]


def check_program_flags(command: str) -> None:
    """Fails unless the mode of this command uses all of its flags."""
    mode = re.search(r'--mode=(\w+)', command)
    uses = commands.MODES['reproduce' if ' reproduce' in command else mode[1] if mode else 'train'].flags
    for flag in re.findall(r'(?<!\S)--([\w.]+)', command):
        if flag.startswith('config.'):
            assert flag.removeprefix('config.') in FIELDS, command
        else:
            assert flag.removeprefix('no') in uses or flag in ('config', 'workdir', 'mode', 'help', *uses), command


@every_page
def test_flags_in_commands_exist(page):
    for command in command_lines(PAGES[page]):
        script = re.search(r'benchmarks/(\w+\.py)', command)
        if script:
            assert set(re.findall(r'(?<!\S)--([\w-]+)', command)) <= BENCHMARK_FLAGS[script[1]], command
        elif program := PROGRAM.search(command):
            check_program_flags(command[program.end() :])


@every_page
def test_flags_and_config_fields_in_the_text_exist(page):
    for code in inline_code(PAGES[page]):
        for flag in re.findall(r'(?<!\S)--([\w.-]+)', code if code.startswith('--') else ''):
            if flag.removeprefix('no').startswith('config.'):
                assert flag.removeprefix('no').removeprefix('config.') in {'FIELD', *FIELDS}, code
            else:
                assert flag in commands.FLAGS or flag.removeprefix('no') in commands.FLAGS or flag in OTHER_FLAGS, code
        field = re.fullmatch(r'config\.([a-z_.]+)', code)
        if field and field[1] not in ('get', 'json'):
            assert field[1] in FIELDS | SECTION_NAMES, code


def test_the_readme_is_short():
    assert len(PAGES['README.md'].splitlines()) <= 130


def test_the_model_and_the_config_in_the_readme_work():
    namespace: dict[str, Any] = {
        **{'nn': nn, 'Sequence': Sequence, 'Width': Width, 'Dense': Dense, 'Flatten': Flatten},
        **{'default_config': default_config, 'ConfigDict': ConfigDict},
    }
    for info, block in code_blocks(PAGES['README.md']):
        if info == 'python':
            exec(block, namespace)
    assert list_layers(namespace['MLP'](10), (28, 28, 1))
    get_config: Callable[[], ConfigDict] = namespace['get_config']
    assert list_layers(make_model(get_config().model, 10), (28, 28, 1))


def test_the_results_in_the_readme_are_those_of_results_md():
    published = table((ROOT / 'RESULTS.md').read_text(), 'config')
    assert table(PAGES['README.md'], 'config') == [
        {
            'config': f'`{row["config"]}`',
            'dataset, split': f'{DATASETS[row["dataset"]]}, {row["split"]}',
            'published accuracy': row['published accuracy'].replace('NA', 'none'),
            'our accuracy': row['accuracy'],
            'seeds': row['seeds'],
        }
        for row in published
    ]


def test_the_accuracies_of_the_recipes_in_the_readme_are_those_of_results_md():
    recipes = {row['config']: row for row in table(RECIPES, 'config')}
    named = re.findall(r'`(\w+)` (0\.\d+)(?:\s\((0\.\d+) as an ensemble\))?', PAGES['README.md'])
    assert len(named) >= 5
    for config, accuracy, ensemble in named:
        assert accuracy == recipes[config]['accuracy'].split(' ')[0], config
        assert ensemble in recipes[config]['accuracy'].split('; ')[-1], config


def test_the_accuracies_in_the_configs_are_those_of_results_md():
    rows = [*table((ROOT / 'RESULTS.md').read_text(), 'config'), *table(RECIPES, 'config')]
    for row in rows:
        text = ' '.join((ROOT / 'configs' / f'{row["config"]}.py').read_text().split())
        accuracy = row['accuracy'].split('; ')[0]
        assert accuracy in text, row['config']
        assert f'over {row["seeds"]} seeds' in text.lower(), row['config']


def test_import_order_is_that_of_the_layout_test():
    (block,) = (block for info, block in code_blocks(PAGES['docs/architecture.md']) if block.startswith('main\n'))
    assert block.split('\n')[:-1] == [', '.join(names) for names in LEVELS]


def test_every_module_is_in_the_api_reference():
    modules = {
        '.'.join(path.relative_to(ROOT).with_suffix('').parts)
        for path in (ROOT / 'mnist_jax').rglob('*.py')
        if path.stem != '__init__'
    }
    pages = ''.join(text for page, text in PAGES.items() if page.startswith('docs/reference/'))
    assert set(re.findall(r'^::: ([\w.]+)$', pages, re.MULTILINE)) == {*modules, 'mnist_jax.load', 'mnist_jax.study'}


@pytest.mark.parametrize(
    ('page', 'names'),
    [
        ('docs/training.md', (*OPTIMIZERS, *SCHEDULES, *LOSSES)),
        ('docs/data.md', SOURCES),
        ('docs/getting-started.md', commands.MODES),
        ('docs/http-api.md', endpoint.FIELDS),
    ],
)
def test_every_choice_is_documented(page, names):
    assert [name for name in names if name not in inline_code(PAGES[page])] == []


def test_every_status_of_the_server_is_documented():
    inference = ROOT / 'mnist_jax' / 'inference'
    source = (inference / 'server.py').read_text() + (inference / 'endpoint.py').read_text()
    names = set(re.findall(r'HTTPStatus\.([A-Z_]+)', source)) - {'OK'}
    codes = {str(endpoint.http.HTTPStatus[name].value) for name in names}
    by_http_server = {'414', '431', '505'}  # The base class of the handler finds these errors.
    documented = [row['status'] for row in table(PAGES['docs/http-api.md'], 'status')]
    assert set(documented) == codes | by_http_server | {'503'} and documented == sorted(documented)


def test_renamed_modules_in_the_changelog_exist():
    for row in table((ROOT / 'CHANGELOG.md').read_text(), 'old'):
        for name in re.findall(r'`([\w.]+)`', row['new']):
            pkgutil.resolve_name(f'mnist_jax.{name}')


EXAMPLES: dict[str, str] = {}  # by name; the blocks of one name are the pieces of one script
for info, block in code_blocks(PAGES['docs/extending.md'] + PAGES['docs/python.md']):
    if match := re.fullmatch(r'python title="(\w+\.py)"', info):
        EXAMPLES[match[1]] = EXAMPLES.get(match[1], '') + block


def test_there_are_eight_examples():
    assert len(EXAMPLES) == 8


def test_every_example_trains_a_model_that_learns(tmp_path, data_dir):
    for name, text in EXAMPLES.items():
        (tmp_path / name).write_text(text)
    # One process for all of them, which saves the time of importing JAX.
    script = 'import runpy, sys\nfor path in sys.argv[1:]:\n    runpy.run_path(path, run_name="__main__")'
    command = [sys.executable, '-c', script, *EXAMPLES]
    process = subprocess.run(command, cwd=tmp_path, env=environment(data_dir), capture_output=True, text=True)
    assert process.returncode == 0, process.stderr
    documented = {row['file'].strip('`/') for row in table(PAGES['docs/architecture.md'], 'file')}
    assert len(list((tmp_path / 'runs' / 'rates' / 'outcomes').iterdir())) == 4  # the study in from_python.py
    workdirs = [path for path in (tmp_path / 'runs').iterdir() if path.name != 'rates']
    assert len(workdirs) == len(EXAMPLES)
    for workdir in workdirs:
        assert json.loads((workdir / 'eval.json').read_text())['accuracy'] > 0.5, workdir
        assert {path.name for path in workdir.iterdir()} <= documented


def test_the_command_line_knows_a_users_part(tmp_path, data_dir):
    definition, _, _ = EXAMPLES['lenet.py'].partition('config = load_config')
    (end,) = (block for _, block in code_blocks(PAGES['docs/extending.md']) if block.startswith('if __name__'))
    (tmp_path / 'lenet.py').write_text(definition + end)
    (documented,) = (line for line in command_lines(PAGES['docs/extending.md']) if line.startswith('python lenet.py'))
    command = [sys.executable, *shlex.split(documented)[1:], '--mode=summary']
    variables = {**environment(data_dir), 'PYTHONPATH': str(ROOT)}
    process = subprocess.run(command, cwd=tmp_path, env=variables, capture_output=True, text=True)
    assert process.returncode == 0, process.stderr
    assert re.search(r'^Conv_1 .* 808 ', process.stdout, re.MULTILINE)  # 5 x 5 x 4 x 8 weights and 8 biases
