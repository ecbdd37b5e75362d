"""Types of the command-line arguments of the benchmarks: what is wrong is said before anything is measured."""

import argparse
from collections.abc import Callable, Collection


def names(known: Collection[str]) -> Callable[[str], tuple[str, ...]]:
    """Returns the type of an argument that lists some of the known names, with commas between them."""

    def parse(text: str) -> tuple[str, ...]:
        chosen = tuple(text.split(','))
        if not set(chosen) <= set(known):
            raise argparse.ArgumentTypeError(f'must be some of {", ".join(known)}, got {text}')
        return chosen

    return parse


def at_least(low: int) -> Callable[[str], int]:
    """Returns the type of a whole number that is at least `low`."""

    def parse(text: str) -> int:
        if not text.isdecimal() or int(text) < low:
            raise argparse.ArgumentTypeError(f'must be a whole number from {low}, got {text}')
        return int(text)

    return parse


def config_path(text: str) -> str:
    """The type of the path of a config file."""
    from mnist_jax.config import load_config  # `accelerator.py` may have to install what mnist_jax needs first.
    from mnist_jax.config_checks import check_config
    from mnist_jax.errors import UserError

    try:
        check_config(load_config(text))
    except UserError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
    return text
