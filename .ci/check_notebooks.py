"""Rejects notebooks that are larger than `MAX_BYTES`: `check_notebooks.py FILE.ipynb ...`."""

import sys
from pathlib import Path

MAX_BYTES = 200_000  # bytes, with outputs


def main() -> None:
    """Prints each notebook that is too large, and exits with status 1 if there is any."""
    sizes = {path: Path(path).stat().st_size for path in sys.argv[1:]}
    errors = [
        f'error: {path} must be at most {MAX_BYTES:,} bytes, got {size:,}; clear large outputs before committing it'
        for path, size in sizes.items()
        if size > MAX_BYTES
    ]
    if errors:
        sys.exit('\n'.join(errors))


if __name__ == '__main__':
    main()
