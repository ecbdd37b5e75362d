#!/usr/bin/env bash
# One entry for people: sets up .venv on first use, then trains, evaluates or tests.
#
#   ./launch.sh --config=configs/cnn.py     train (every argument goes to python -m mnist_jax.main)
#   ./launch.sh --mode=eval --help          all flags of that
#   ./launch.sh test                        run the tests (further arguments go to pytest)
#   ./launch.sh reproduce --seeds=3         every published experiment: python -m mnist_jax.main --mode=reproduce
#   ./launch.sh setup                       only install
#
# PYTHON names the interpreter that makes .venv, if it is not to be the newest suitable python3 on the PATH.
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
    echo "error: Python 3.11 or newer is wanted, and ${PYTHON:-python3} is not; set PYTHON=/path/to/python3.11" >&2
    exit 2
}

# A set of requirements, with further arguments for pip, is installed once its stamp holds their digest. While something
# is being installed, a mark says so: an installation that was interrupted is done again, from nothing.
install() {
    local file=$root/$1 stamp=$venv/$1.stamp digest
    digest=$(cksum <"$file")
    if [[ ! -f $stamp || $(<"$stamp") != "$digest" ]]; then
        echo "Installing $1 into $venv (once)" >&2
        touch "$venv/installing"
        "$venv/bin/python" -m pip install --quiet --disable-pip-version-check "${@:2}" --requirement "$file"
        echo "$digest" >"$stamp"
        rm "$venv/installing"
    fi
}

setup() {
    local python
    if command -v flock >/dev/null; then
        exec 9>"$root/.venv.lock"
        flock 9
    fi
    if [[ ! -f $venv/requirements.txt.stamp || -e $venv/installing ]] || ! "$venv/bin/python" -c '' 2>/dev/null; then
        python=$(find_python)
        rm -rf "$venv"
        "$python" -m venv "$venv"
    fi
    install requirements.txt
    if [[ ${1:-} == test ]]; then
        install requirements-test.txt
        install requirements-onnx.txt --no-deps
    fi
    exec 9>&-
}

case ${1:-} in
-h | --help)
    sed -n '2,/^set/{s/^# \{0,1\}//;/^set/d;p}' "$root/launch.sh"
    ;;
setup)
    setup
    ;;
test)
    setup test
    cd "$root"
    exec "$venv/bin/python" -m pytest "${@:2}"
    ;;
*)
    setup
    if [[ ${1:-} == reproduce ]]; then
        set -- --mode=reproduce "${@:2}"
    fi
    # configs/ lies beside this script, wherever it is called from.
    args=()
    for arg in "$@"; do
        path=${arg#--config=}
        if [[ $path == configs/*.py && ! -e $path ]]; then
            arg=${arg%"$path"}$root/$path
        fi
        args+=("$arg")
    done
    PYTHONPATH=$root${PYTHONPATH:+:$PYTHONPATH} exec "$venv/bin/python" -m mnist_jax.main ${args[@]+"${args[@]}"}
    ;;
esac
