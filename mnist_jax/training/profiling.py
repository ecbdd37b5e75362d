"""Traces some steps of a run with JAX's profiler, and says where their time went (`config.profile_steps`)."""

import collections
import re
import shutil
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import NamedTuple, TypeVar

import jax
from absl import logging
from jax.profiler import ProfileData, ProfileEvent, ProfileOptions

from mnist_jax import files, text_tables
from mnist_jax.errors import first_line

WARM_UP_CALLS = 2  # The first calls compile, and fill queues and caches.
TABLE_ROWS = 25
Group = TypeVar('Group', bound=Sequence)
INCLUDE_METADATA = 'jax_compilation_cache_include_metadata_in_key'
INSTRUCTION = re.compile(r'^ *(?:ROOT )?%?([\w.-]+) = (.+)$', re.MULTILINE)
OP_NAME, KERNEL = re.compile(r'op_name="([^";]*)'), re.compile(r'custom_call_target="mnist_jax_(\w+)"')
# Parts of an `op_name` that are not scopes: functions, and the control flow around them.
FUNCTION = re.compile(r'p?jit\([^()]*\)')
TRANSFORMATION = re.compile(r'\w+\(([^()]*)\)')
CONTROL_FLOW = re.compile(r'while|body|cond|closed_call|shard_map|branch_\d+_fun|')


class Operation(NamedTuple):
    """What an instruction of a compiled step belongs to.

    Attributes:
      part: The path of a layer, 'loss', or another scope of `step.train_step` such as 'update'; '-' if unknown.
      direction: 'forward', 'backward' or '-'.
      kind: The name of a kernel of this package, or XLA's name of the instruction without its number.
    """

    part: str
    direction: str
    kind: str


class Profiler:
    """Traces at least `steps` steps of a training loop, and writes a trace and a table to a directory.

    A context manager; leaving it ends a trace that is still running. An earlier trace in the directory is replaced. If
    nothing can be written, an error is logged, and the run goes on.
    """

    def __init__(self, directory: Path, steps: int):
        self._directory, self._wanted = directory, steps
        self._calls = self._traced = 0
        self._running = False

    def watch(self, groups: Iterable[Group]) -> Iterator[Group]:
        """Yields the groups of batches that a loop trains on, each in one call; traces those after the first calls."""
        for group in groups:
            if self._running and self._traced >= self._wanted:
                self._finish()
            elif not self._running and self._wanted and self._calls >= WARM_UP_CALLS:
                self._start()
            self._calls += 1
            self._traced += len(group) if self._running else 0
            yield group

    def _start(self) -> None:
        options = ProfileOptions()
        options.python_tracer_level = 0  # Tracing the calls of Python would slow down what is measured.
        try:
            shutil.rmtree(self._directory, ignore_errors=True)
            self._directory.mkdir()
            jax.profiler.start_trace(str(self._directory), profiler_options=options)
            self._running = True
        except (OSError, RuntimeError) as error:
            self._give_up(error)

    def _finish(self) -> None:
        self._running = False
        try:
            jax.profiler.stop_trace()
            lines = summary(self._directory, self._traced)
            files.write_text(self._directory / 'operations.txt', '\n'.join(lines) + '\n')
        except (OSError, RuntimeError) as error:
            self._give_up(error)
            return
        self._wanted = 0
        for line in lines:
            logging.info('%s', line)
        logging.info('Trace: %s, for https://ui.perfetto.dev', _newest(self._directory, '.trace.json.gz'))

    def _give_up(self, error: Exception) -> None:
        self._wanted = 0
        logging.error('The steps cannot be traced in %s: %s', self._directory, first_line(error))

    def __enter__(self) -> 'Profiler':
        self._metadata_before = jax.config.values[INCLUDE_METADATA]
        if self._wanted:  # Otherwise a program from JAX's cache may have the layers of one that computes the same.
            jax.config.update(INCLUDE_METADATA, True)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        jax.config.update(INCLUDE_METADATA, self._metadata_before)
        if self._running:
            self._finish()
        elif self._wanted and kind is None:
            logging.warning(
                'No steps were traced: this start made only %d calls of the step, and the first %d are never traced',
                self._calls,
                WARM_UP_CALLS,
            )


def summary(directory: Path, steps: int) -> list[str]:
    """Returns a table of the operations of a trace that took the most time.

    The times of operations add up to more than that of the steps if several run at the same time.

    Args:
      directory: A directory that JAX's profiler has written to.
      steps: The number of steps in the trace, for the title.
    """
    milliseconds: dict[Operation, float] = collections.defaultdict(float)
    calls: dict[Operation, int] = collections.Counter()
    for operation, duration in _operations(ProfileData.from_file(str(_newest(directory, '.xplane.pb')))):
        milliseconds[operation] += duration / 1e6
        calls[operation] += 1
    total = sum(milliseconds.values())
    ranked = sorted(milliseconds, key=milliseconds.__getitem__, reverse=True)
    rows = [
        [*operation, f'{calls[operation]:,}', f'{milliseconds[operation]:.2f}'] for operation in ranked[:TABLE_ROWS]
    ]
    if others := ranked[TABLE_ROWS:]:
        time = sum(milliseconds[operation] for operation in others)
        rows.append(
            [f'{len(others)} more', '', '', f'{sum(calls[operation] for operation in others):,}', f'{time:.2f}']
        )
    rows = [[*row, f'{float(row[-1]) / total:.1%}'] for row in rows]
    title = f'operations of {steps:,} training steps and of what ran beside them; {total:.1f} ms in all'
    return [title, '', *text_tables.titled([['part', 'direction', 'operation', 'calls', 'ms', 'share'], *rows], left=3)]


def _newest(directory: Path, suffix: str) -> Path:
    """Returns the newest file in `directory`, at any depth, whose name ends in `suffix`."""
    return max(directory.rglob(f'*{suffix}'), key=lambda path: path.stat().st_mtime)


def _operations(trace: ProfileData) -> Iterator[tuple[Operation, float]]:
    """Yields each run of an XLA operation in a trace, and its nanoseconds without those of operations inside it."""
    runs: dict[int, list[tuple[str, float]]] = collections.defaultdict(list)  # by program
    for plane in trace.planes:
        for line in plane.lines:
            for event, duration in _own_times(line.events, nested=not plane.name.startswith('/device:GPU')):
                stats = dict(event.stats)
                if name := stats.get('hlo_op'):
                    # Kernels that copy or that run in a graph within a graph only have a name of their own.
                    name = event.name if name.startswith('command_buffer') else name
                    runs[stats.get('program_id', 0)].append((name, duration))
    programs = _live_programs()
    for program_runs in runs.values():
        names = {name for name, _ in program_runs}
        # All steps are compiled under the same name, so the program is the smallest one with these instructions.
        program = max(programs, key=lambda program: (len(names & program.keys()), -len(program)), default={})
        for name, duration in program_runs:
            yield program.get(name, Operation('-', '-', _kind(name))), duration


def _own_times(events: Iterable[ProfileEvent], nested: bool) -> Iterator[tuple[ProfileEvent, float]]:
    """Yields each event of a line, and its duration without those of the events inside it.

    Args:
      events: The events.
      nested: Whether events may be inside others: the functions that a thread calls, but not the kernels of a GPU.
    """
    if not nested:
        yield from ((event, event.duration_ns) for event in events)
        return
    callers: list[list] = []  # [end, event, own duration], the outermost first
    for event in sorted(events, key=lambda event: (event.start_ns, -event.duration_ns)):
        while callers and callers[-1][0] <= event.start_ns:
            _, caller, own = callers.pop()
            yield caller, own
        if callers:
            callers[-1][2] -= event.duration_ns
        callers.append([event.start_ns + event.duration_ns, event, event.duration_ns])
    yield from ((caller, own) for _, caller, own in callers)


def _live_programs() -> list[dict[str, Operation]]:
    """Returns the instructions of all programs in the memory of this process, by name."""
    modules = [
        module for program in jax.local_devices()[0].client.live_executables() for module in program.hlo_modules()
    ]
    return [
        {name: _operation(name, text) for name, text in INSTRUCTION.findall(module.to_string())} for module in modules
    ]


def _operation(name: str, text: str) -> Operation:
    """Returns what an instruction with this name and text in XLA's notation belongs to."""
    path = match[1] if (match := OP_NAME.search(text)) else ''
    direction = 'backward' if 'transpose(' in path else 'forward' if 'jvp(' in path else '-'
    path = FUNCTION.sub('', path.rpartition('/')[0])
    while path != (path := TRANSFORMATION.sub(r'\1', path)):
        pass
    scopes = [scope for scope in path.split('/') if not CONTROL_FLOW.fullmatch(scope)]
    if direction != '-':  # The model is the first scope.
        scopes = scopes[1:] or (['model'] if scopes else ['loss'])
    kernel = KERNEL.search(text)
    return Operation('/'.join(scopes) or '-', direction, kernel[1] if kernel else _kind(name))


def _kind(name: str) -> str:
    return re.sub(r'[._\d]+$', '', name)
