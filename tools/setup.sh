#!/bin/sh
# Make or complete the project's own environment: checks first, then uv, then the package with all its extras.
#
#   tools/setup.sh [FOLDER]     default .venv
#   tools/setup.sh --check      only say what is missing
#
# PYTHON names the interpreter to use, CXX the C++ compiler.
set -eu
cd "$(dirname "$0")/.."

venv=.venv
only_check=
case ${1:-} in
--check) only_check=yes ;;
?*) venv=$1 ;;
esac

missing=
miss() {
    missing=yes
    printf 'setup: missing: %s\n' "$1" >&2
    shift
    printf '       %s\n' "$@" >&2
}

new_enough() {
    "$1" -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1
}

compiles() {
    # A compiler without its standard library, or a stub that only offers to install one, must not pass.
    printf '#include <vector>\nint main() { return 0; }\n' | "$1" -std=c++17 -fsyntax-only -x c++ - >/dev/null 2>&1
}

python=
for candidate in ${PYTHON:-"$venv/bin/python" python3 python3.13 python3.12 python3.11 python3.14 python}; do
    if new_enough "$candidate"; then
        python=$candidate
        break
    fi
done
if [ -z "$python" ]; then
    if [ -n "${PYTHON:-}" ]; then
        miss "Python 3.11 or newer; PYTHON=$PYTHON does not run or is older" \
            "Name another one: make PYTHON=/path/to/python3.12"
    else
        miss "Python 3.11 or newer; $(python3 --version 2>&1 | head -n 1 | grep . || echo 'there is no python3')" \
            "Install it (Debian, Ubuntu: apt install python3 python3-venv) or name it: make PYTHON=/path/to/python3.12"
    fi
fi

compiler=
for candidate in ${CXX:-c++ g++ clang++}; do
    if compiles "$candidate"; then
        compiler=$candidate
        break
    fi
done
[ -n "$compiler" ] || miss "a C++ compiler; ${CXX:-none of c++, g++, clang++} compiles a C++17 file (Verilator needs it)" \
    "Install one (Debian, Ubuntu: apt install g++; Fedora: dnf install gcc-c++; macOS: xcode-select --install)" \
    "or name it: make CXX=/path/to/g++"

# Verilator's driver is a Perl program with these modules, which a minimal Perl may lack.
perl -MGetopt::Long -MPod::Usage -MFindBin -e 1 >/dev/null 2>&1 || miss "Perl with its standard modules (Verilator needs it)" \
    "Install it (Debian, Ubuntu: apt install perl; Fedora: dnf install perl; macOS has it)"

[ -z "$missing" ] || exit 1
echo "setup: $("$python" --version 2>&1) ($python), C++ compiler $compiler, perl"
[ -z "$only_check" ] || exit 0

# --- the environment ---

if ! new_enough "$venv/bin/python"; then
    if [ -e "$venv" ] && [ ! -f "$venv/pyvenv.cfg" ]; then
        echo "setup: $venv exists and is no Python environment; move it away and run make again" >&2
        exit 1
    fi
    [ ! -e "$venv" ] || echo "setup: $venv does not run or is older than Python 3.11; making it anew"
    # Some systems ship Python without ensurepip: then an environment without pip has to do.
    "$python" -m venv --clear "$venv" >/dev/null 2>&1 ||
        "$python" -m venv --clear --without-pip "$venv" >/dev/null 2>&1 ||
        { rm -rf "$venv" && { uv venv --quiet --python "$python" "$venv" 2>/dev/null || true; }; }
    new_enough "$venv/bin/python" || {
        rm -rf "$venv"
        miss "Python's venv module; $python cannot make an environment" \
            "Install it (Debian, Ubuntu: apt install python3-venv) or name another Python: make PYTHON=/path/to/python3.12"
        exit 1
    }
fi

if [ ! -x "$venv/bin/uv" ]; then
    echo "setup: installing uv into $venv"
    "$venv/bin/python" -m pip --version >/dev/null 2>&1 || "$venv/bin/python" -m ensurepip >/dev/null 2>&1 || true
    if "$venv/bin/python" -m pip --version >/dev/null 2>&1; then
        "$venv/bin/python" -m pip install --quiet --disable-pip-version-check uv
    elif "$python" -m pip --version >/dev/null 2>&1; then
        "$python" -m pip --python "$venv/bin/python" install --quiet --disable-pip-version-check uv
    elif command -v uv >/dev/null 2>&1; then
        uv pip install --quiet --python "$venv/bin/python" uv
    else
        miss "pip; $python has neither ensurepip nor pip to install packages with" \
            "Install it (Debian, Ubuntu: apt install python3-venv) or name another Python: make PYTHON=/path/to/python3.12"
        exit 1
    fi
fi

# uv does not read pip's configuration; who reaches the package registry through a mirror has told pip.
if [ -z "${UV_DEFAULT_INDEX:-}${UV_INDEX_URL:-}" ]; then
    index=${PIP_INDEX_URL:-$("$venv/bin/python" -m pip config get global.index-url 2>/dev/null || true)}
    [ -z "$index" ] || export UV_DEFAULT_INDEX="$index"
fi
export UV_HTTP_TIMEOUT="${UV_HTTP_TIMEOUT:-300}"

echo "setup: installing the package and its tools into $venv (some gigabytes; half a minute on a fast line)"
# Compiled now, or every process would compile torch anew where PYTHONDONTWRITEBYTECODE is set.
"$venv/bin/uv" pip install --compile-bytecode --python "$venv/bin/python" --editable '.[calibrate,cluster,dev,explore,fpga]'
