"""Prints where mnist_jax became slower, according to the lines that `throughput.py` appended to `history.jsonl`.

    .venv/bin/python benchmarks/compare_history.py                      # the newest commit and the one before it
    .venv/bin/python benchmarks/compare_history.py --since=30dd0ca      # the newest commit and this one

The speed of a machine varies from hour to hour, so the images/s of two runs cannot be compared. The ratio to another
program in the same run can: if it fell, mnist_jax became slower. The change of a model is the median of the changes of
its ratios to all programs that both runs measured. Only runs on the same processor are compared.

Prints a Markdown table, and exits with 1 if a change is below 1 by more than the tolerance.
"""

import argparse
import json
import statistics
import sys
from pathlib import Path
from typing import Any

HISTORY = Path(__file__).parent / 'history.jsonl'
PHASES = {'train': 'training', 'eval': 'evaluation'}

Run = dict[str, Any]
"""A line of the history."""


def ratios(run: Run, phase: str) -> dict[str, float]:
    """Returns, for each other program of a run, the median over the rounds of the ratio of mnist_jax to it."""
    programs = run['programs']
    ours = programs['ours'][phase]
    return {
        name: statistics.median(own / other for own, other in zip(ours, program[phase], strict=True))
        for name, program in programs.items()
        if name != 'ours' and program[phase]
    }


def change(before: Run, after: Run, phase: str) -> float | None:
    """Returns how much faster mnist_jax became: the median over the programs in both runs; None if there are none."""
    old, new = ratios(before, phase), ratios(after, phase)
    common = [new[name] / old[name] for name in new if name in old]
    return statistics.median(common) if common else None


def compare(runs: list[Run], since: str) -> list[tuple[str, str, str, str, str, float]]:
    """Returns model, phase, processor, both commits and the change, for each model and processor with two commits.

    Args:
      runs: The lines of the history, oldest first.
      since: The commit to compare the newest run with; '' for the one before it.
    """
    by_model: dict[tuple[str, str], list[Run]] = {}
    for run in runs:
        if 'ours' in run['programs']:
            by_model.setdefault((run['processor'], run['model']), []).append(run)
    rows = []
    for (processor, model), history in by_model.items():
        after = history[-1]
        earlier = [run for run in history if run['commit'] == since or (not since and run['commit'] != after['commit'])]
        for phase in PHASES if earlier else ():
            value = change(earlier[-1], after, phase)
            if value is not None:
                rows.append((model, PHASES[phase], processor, earlier[-1]['commit'], after['commit'], value))
    return rows


def main() -> None:
    """Compares the runs of the history, and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--history', type=Path, default=HISTORY, help='the file that throughput.py appends to')
    parser.add_argument('--since', default='', help='the commit to compare with, as the history names it')
    parser.add_argument('--tolerance', type=float, default=0.05, help='a fall of the ratio that is not reported')
    options = parser.parse_args()
    try:
        runs = [json.loads(line) for line in options.history.read_text().splitlines()]
    except (OSError, ValueError) as error:
        parser.error(f'--history must be a file of JSON lines that throughput.py wrote, got {options.history}: {error}')
    rows = compare(runs, options.since)
    if not rows:
        commits = ', '.join(dict.fromkeys(run['commit'] for run in runs)) or 'none'
        parser.error(f'--history must have runs of two commits on one processor, got the commits {commits}')
    print('| model | phase | processor | before | after | change of the ratio |', '|---' * 6 + '|', sep='\n')
    for model, phase, processor, before, after, value in rows:
        remark = ' slower' if value < 1 - options.tolerance else ''
        print(f'| `{model}` | {phase} | {processor} | {before} | {after} | {value:.2f}{remark} |')
    sys.exit(any(value < 1 - options.tolerance for *_, value in rows))


if __name__ == '__main__':
    main()
