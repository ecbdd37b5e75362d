"""Downloads what `accelerator.py` needs on a GPU machine that has no network: wheels for Python 3.12 on x86-64 Linux.

    .venv/bin/python benchmarks/fetch_wheels.py --output=wheels

That machine must have jax 0.11 with its CUDA plugin, flax, optax, Orbax, SciPy, scikit-learn, Matplotlib, Pillow, tqdm
and Jinja2, and, for the tests and the comparison, pytest and PyTorch. The wheels are the other packages that mnist_jax
needs, and Keras; `accelerator.py` uses those that the machine lacks. They do not include ziglang, which compiles the
CPU kernels, because it alone has 90 MB. Prints their total size; exits with 1 if it is more than 40 MB.
"""

import argparse
import subprocess
import sys
from pathlib import Path

# pip gets them without their dependencies, so every package is listed that those above do not require.
BINARY = (
    *('array-record', 'attrs', 'certifi', 'charset-normalizer', 'dm-tree', 'docstring-parser'),
    *('googleapis-common-protos', 'h5py', 'idna', 'immutabledict', 'importlib-resources', 'keras==3.15.1'),
    *('ml-collections', 'namex', 'optree', 'protobuf', 'psutil', 'requests', 'simple-parsing', 'six', 'tensorboardX'),
    *('tensorflow-datasets', 'tensorflow-metadata', 'termcolor', 'toml', 'urllib3', 'wrapt'),
)
PURE = ('promise',)  # published as source only; its wheel runs everywhere
PLATFORMS = ('manylinux_2_28_x86_64', 'manylinux_2_27_x86_64', 'manylinux_2_17_x86_64', 'manylinux2014_x86_64')
MAX_BYTES = 40_000_000


def fetch(directory: Path) -> None:
    """Downloads the wheels of `BINARY`, and builds those of `PURE`."""
    pip = (sys.executable, '-m', 'pip', '--quiet', '--disable-pip-version-check')
    target = ('--python-version=3.12', '--implementation=cp', *(f'--platform={name}' for name in PLATFORMS))
    download = ('download', '--no-deps', '--only-binary=:all:', *target, f'--dest={directory}', *BINARY)
    subprocess.run([*pip, *download], check=True)
    subprocess.run([*pip, 'wheel', '--no-deps', f'--wheel-dir={directory}', *PURE], check=True)


def main() -> None:
    """Fetches the wheels, and prints their sizes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--output', type=Path, default=Path('wheels'), help='the directory to fill')
    options = parser.parse_args()
    try:
        options.output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        parser.error(f'--output must be a directory that can be written, got {str(options.output)!r}: {error.strerror}')
    fetch(options.output)
    wheels = sorted(options.output.glob('*.whl'))
    for wheel in wheels:
        print(f'{wheel.stat().st_size / 1e6:6.1f} MB  {wheel.name}')
    total = sum(wheel.stat().st_size for wheel in wheels)
    print(f'{total / 1e6:6.1f} MB  in all')
    if total > MAX_BYTES:
        sys.exit(f'error: the wheels must have at most {MAX_BYTES / 1e6:.0f} MB, got {total / 1e6:.1f} MB')


if __name__ == '__main__':
    main()
