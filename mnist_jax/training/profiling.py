"""Traces some steps of a run with JAX's profiler, and says where their time went (`config.profile_steps`)."""

import collections
import itertools
import re
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import NamedTuple, TypeVar

import jax
from absl import logging
from jax.profiler import ProfileData, ProfileEvent, ProfileOptions

from mnist_jax import files, text_tables
from mnist_jax.errors import first_line

WARM_UP_CALLS = 2  # The first calls compile, and fill queues and caches.
LOGGED_ROWS = 25
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
      part: The path of a layer, 'loss', or another scope of `step.train_step` such as 'update'; '-' if unknown;
        'other programs' for all that do not train.
      direction: 'forward', 'backward' or '-'.
      kind: The name of a kernel of this package, or XLA's name of the instruction without its number.
    """

    part: str
    direction: str
    kind: str


class Profiler:
    """Traces at least `steps` steps of a training loop, and writes the trace and a table of its operations.

    A context manager; leaving it ends a trace that is still running. An earlier trace in the directory is replaced. If
    nothing can be written, an error is logged, and the run continues.
    """

    def __init__(self, directory: Path, steps: int):
        self._directory, self._wanted = directory, steps
        self._calls = self._traced = 0
        self._running = False

    def watch(self, groups: Iterable[Group], wait: Callable[[], None]) -> Iterator[Group]:
        """Yields the groups of batches of an epoch, each for one call of the step; traces those after the first calls.

        Args:
          groups: The groups.
          wait: Waits for all calls so far, so that the trace has the steps that are counted, and no other ones.
        """
        for group in groups:
            if self._wanted and not self._running and self._calls >= WARM_UP_CALLS:
                wait()
                self._start()
            self._calls += 1
            yield group
            self._traced += len(group) if self._running else 0
            if self._running and self._traced >= self._wanted:
                wait()
                self._finish()

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
            operations = read_operations(self._directory)
            title = f'Traced {text_tables.counted(self._traced, "training step")}'
            text = '\n'.join([title, '', *operations_table(operations)])
            files.write_text(self._directory / 'operations.txt', f'{text}\n')
            path = _newest(self._directory, '.trace.json.gz')
        except (OSError, RuntimeError, ValueError) as error:
            self._give_up(error)
            return
        self._wanted = 0
        for line in [f'{title}:', *operations_table(operations, LOGGED_ROWS)]:
            logging.info('%s', line)
        logging.info('Trace: %s; it opens in https://ui.perfetto.dev', path)

    def _give_up(self, error: Exception) -> None:
        self._wanted = 0
        logging.error('The steps cannot be traced in %s: %s', self._directory, first_line(error))

    def __enter__(self) -> 'Profiler':
        self._metadata_before = jax.config.values[INCLUDE_METADATA]
        if self._wanted:  # Otherwise JAX's cache may return a program with the layer names of another, equal one.
            jax.config.update(INCLUDE_METADATA, True)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        jax.config.update(INCLUDE_METADATA, self._metadata_before)
        if self._running:
            self._finish()
        elif self._wanted and self._calls and kind is None:
            logging.warning(
                'No steps were traced, because the first %d calls of the compiled step never are, and this start made '
                'only %d; use more epochs, or --config.steps_per_call=1',
                WARM_UP_CALLS,
                self._calls,
            )


def read_operations(directory: Path) -> dict[Operation, tuple[int, float]]:
    """Returns the calls and the milliseconds of each operation in the newest trace of a directory, the longest first.

    Operations that run at the same time are all counted in full.
    """
    milliseconds: dict[Operation, float] = collections.defaultdict(float)
    calls: dict[Operation, int] = collections.Counter()
    for operation, duration in _operations(ProfileData.from_file(str(_newest(directory, '.xplane.pb')))):
        milliseconds[operation] += duration / 1e6
        calls[operation] += 1
    ranked = sorted(milliseconds, key=milliseconds.__getitem__, reverse=True)
    return {operation: (calls[operation], milliseconds[operation]) for operation in ranked}


def operations_table(operations: Mapping[Operation, tuple[int, float]], limit: int | None = None) -> list[str]:
    """Returns the lines of a table of the first `limit` operations, or of all, and of the sum of the others."""
    rows: list[tuple[Sequence[str], int, float]] = [
        (operation, *numbers) for operation, numbers in itertools.islice(operations.items(), limit)
    ]
    if others := list(operations.values())[len(rows) :]:
        rows.append(((f'{len(others)} more', '', ''), sum(calls for calls, _ in others), sum(ms for _, ms in others)))
    total = sum(milliseconds for _, milliseconds in operations.values())
    cells = [[*names, f'{calls:,}', f'{ms:.2f}', f'{ms / total:.1%}'] for names, calls, ms in rows]
    return text_tables.titled([['part', 'direction', 'operation', 'calls', 'ms', 'share'], *cells], left=3)


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
        trains = any(operation.direction == 'backward' for operation in program.values())
        for name, duration in program_runs:
            default = Operation('-', '-', _kind(name))
            is_other = program and not trains
            yield Operation('other programs', '-', '-') if is_other else program.get(name, default), duration


def _own_times(events: Iterable[ProfileEvent], nested: bool) -> Iterator[tuple[ProfileEvent, float]]:
    """Yields each event of a line, and its duration without those of the events inside it.

    Args:
      events: The events.
      nested: Whether events may contain others, as the function calls of a thread do and the kernels of a GPU do not.
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
