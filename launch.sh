#!/usr/bin/env bash
# Sets up .venv on first use, then runs the program, the tests or the documentation tools.
#
#   ./launch.sh --config=configs/cnn.py     train (all arguments go to mnist-jax)
#   ./launch.sh --mode=eval --help          show all modes and flags
#   ./launch.sh test                        run the tests (further arguments go to pytest)
#   ./launch.sh docs serve                  preview the documentation (further arguments go to mkdocs)
#   ./launch.sh reproduce                   reproduce all published experiments (--mode=reproduce)
#   ./launch.sh setup                       only install
#
# PYTHON sets the interpreter that creates .venv; by default, it is the first suitable python3 on the PATH.
set -euo pipefail

root=$(cd "$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")" && pwd)
venv=$root/.venv

find_python() {
    local name names=(python3 python3.14 python3.13 python3.12 python3.11)
    if [[ -n ${PYTHON:-} ]]; then
        names=("$PYTHON")
    fi
    for name in "${names[@]}"; do
        if "$name" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
            echo "$name"
            return
        fi
    done
    echo "error: Python must be 3.11 or newer, got ${PYTHON:-python3}; set PYTHON=/path/to/python3.11" >&2
    exit 2
}

# install FILE ARGUMENTS: runs 'pip install ARGUMENTS' once, and again when FILE changes or the checkout is moved. The
# file .venv/installing marks an installation in progress: one that was interrupted starts over with a new .venv.
install() {
    local file=$root/$1 stamp=$venv/$1.stamp current
    current="$(cksum <"$file") $root"
    if [[ ! -f $stamp || $(<"$stamp") != "$current" ]]; then
        echo "Installing $1 into $venv (once)" >&2
        touch "$venv/installing"
        "$venv/bin/python" -m pip install --quiet --disable-pip-version-check "${@:2}" || {
            rm "$venv/installing"  # What was installed before still works; without a stamp, the next start tries again.
            exit 1
        }
        echo "$current" >"$stamp"
        rm "$venv/installing"
    fi
}

install_lock() {
    install "$1" "${@:2}" --requirement "$root/$1"
}

setup() {
    local python
    # Without the lock, in a checkout that is complete but not writable, there is nothing to install.
    if command -v flock >/dev/null && { : >>"$root/.venv.lock"; } 2>/dev/null; then
        exec 9>>"$root/.venv.lock"
        flock 9 || true
    fi
    if [[ ! -f $venv/requirements.txt.stamp || -e $venv/installing ]] || ! "$venv/bin/python" -c '' 2>/dev/null; then
        python=$(find_python)
        rm -rf "$venv"
        "$python" -m venv "$venv"
    fi
    install_lock requirements.txt
    install pyproject.toml --no-build-isolation --no-deps --editable "$root"
    case ${1:-} in
    test)
        install_lock requirements-test.txt
        install_lock requirements-onnx.txt --no-deps
        install_lock requirements-trackers.txt --no-deps
        ;;
    docs)
        install_lock requirements-docs.txt
        ;;
    esac
    exec 9>&-
}

case ${1:-} in
-h | --help)
    sed -n '2,/^set/{s/^# \{0,1\}//;/^set/d;p;}' "$root/launch.sh"
    ;;
setup)
    setup
    ;;
test)
    setup test
    cd "$root"
    exec "$venv/bin/python" -m pytest "${@:2}"
    ;;
docs)
    setup docs
    cd "$root"
    NO_MKDOCS_2_WARNING=1 exec "$venv/bin/python" -m mkdocs "${@:2}"
    ;;
reproduce)
    setup
    exec "$venv/bin/python" -m mnist_jax.main --mode=reproduce "${@:2}"
    ;;
*)
    setup
    exec "$venv/bin/python" -m mnist_jax.main "$@"
    ;;
esac
