"""Trains a study on all machines of a Ray cluster.

    pip install 'ray[tune]'
    python examples/ray_study.py --config=configs/mlp.py --sweep=study.py --workdir=/shared/study

The flags are those of `mnist-jax --mode=sweep`. All machines must see this repository and the workdir under the same
paths. Ray Tune runs one trial on each machine: the command, which trains with one process per core. The workers share
the study through its workdir, so its result is the same as without Ray, and it can be resumed with or without it.
Without a cluster in RAY_ADDRESS, this machine is the only one.
"""

import os
import subprocess
import sys

try:
    import ray
    from ray import tune
except ImportError:
    sys.exit("this example needs Ray: pip install 'ray[tune]'")

COMMAND = [sys.executable, '-m', 'mnist_jax.main', '--mode=sweep', *sys.argv[1:]]
DIRECTORY = os.getcwd()


def work(parameters: dict) -> None:
    """Trains the trials that no other worker takes, until the study is finished."""
    subprocess.run(COMMAND, cwd=DIRECTORY, check=True)


def whole_machine(parameters: dict) -> tune.PlacementGroupFactory:
    """Returns the resources of a Ray Tune trial: all cores of its machine."""
    node = parameters['node']
    return tune.PlacementGroupFactory([{'CPU': node['cores'], f'node:{node["address"]}': 0.01}])


def main() -> int:
    """Trains the study, and prints its table; returns the exit status."""
    ray.init()
    nodes = [
        {'address': node['NodeManagerAddress'], 'cores': node['Resources']['CPU']}
        for node in ray.nodes()
        if node['Alive'] and node['Resources'].get('CPU')
    ]
    trainable = tune.with_resources(work, whole_machine)
    results = tune.Tuner(trainable, param_space={'node': tune.grid_search(nodes)}).fit()
    if results.num_errors:
        print(f'error: {results.num_errors} of {len(nodes)} machines failed; see the output above', file=sys.stderr)
        return 1
    return subprocess.run(COMMAND).returncode  # All trials are done: this prints the table.


if __name__ == '__main__':
    sys.exit(main())
