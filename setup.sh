#!/usr/bin/env bash
# Sets up .venv for a stage of the work. Usage: setup.sh run|train|check|test [PYTHON]
#   run    what runs a line, and the demo
#   train  and fits, exports and evaluates: torch
#   check  and lints, checks types and runs the quick tests
#   test   and everything else that the tests need: cameras, and the TensorRT path without a GPU (compilers, PyCUDA)
# Each stage holds those above it, and leaves a stamp of its name in .venv. Only `test` needs a compiler or packages of the system.
set -eu
stage=${1:-test}
python=${2:-python3}

fail() { echo "setup: $*" >&2; exit 2; }

apt_install() {
    command -v apt-get >/dev/null || fail "missing $*; install it with your system's package manager"
    local sudo=""
    if [ "$(id -u)" != 0 ]; then
        command -v sudo >/dev/null || fail "missing $*; run as root: apt-get install $*"
        sudo=sudo
    fi
    $sudo apt-get update -q
    DEBIAN_FRONTEND=noninteractive $sudo apt-get install -q -y --no-install-recommends "$@"
}

# A stage's extras of pyproject.toml, and the stages that are then complete.
case $stage in
    run) extras="" stages="run" ;;
    train) extras="[train]" stages="run train" ;;
    check) extras="[train,modbus,check]" stages="run train check" ;;
    test) extras="[train,modbus,dev]" stages="run train check test" ;;
    *) fail "got stage $stage, expected run, train, check or test" ;;
esac

command -v "$python" >/dev/null || apt_install python3 python3-venv
"$python" -c 'import sys; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 13))' \
    || fail "got $("$python" --version), expected Python 3.10 to 3.13; run: make setup PYTHON=python3.11"
"$python" -c 'import ensurepip, venv' 2>/dev/null \
    || apt_install "$("$python" -c 'import sys; print("python%d.%d-venv" % sys.version_info[:2])')"

.venv/bin/python -m pip --version >/dev/null 2>&1 || "$python" -m venv --clear .venv
pip_install() { .venv/bin/python -m pip install -q --disable-pip-version-check -c constraints.txt -e "$1"; }
echo "setup: installing what \"$stage\" needs into .venv"
pip_install ".$extras"

set_up_cameras() {
    # Aravis, its fake camera, a network namespace for that, and what PyGObject is built with. Everything else works without.
    local missing=()
    command -v gcc >/dev/null || missing+=(gcc)
    command -v pkg-config >/dev/null || missing+=(pkg-config)
    command -v ip >/dev/null || missing+=(iproute2)
    [ -f "$header" ] || missing+=(python3-dev)
    pkg-config --exists gobject-introspection-1.0 2>/dev/null || missing+=(libgirepository1.0-dev)
    pkg-config --exists cairo 2>/dev/null || missing+=(libcairo2-dev)
    command -v arv-fake-gv-camera-0.8 >/dev/null || missing+=(aravis-tools)
    command -v arv-tool-0.8 >/dev/null || missing+=(aravis-tools-cli)
    compgen -G '/usr/lib*/**/girepository-1.0/Aravis-0.8.typelib' >/dev/null || missing+=(gir1.2-aravis-0.8)
    if [ ${#missing[@]} != 0 ] && ! (apt_install "${missing[@]}"); then
        echo "setup: no ${missing[*]}: cameras of kind \"genicam\" can be neither used nor tested" >&2
    elif ! pip_install '.[genicam]'; then
        echo "setup: PyGObject cannot be built: cameras of kind \"genicam\" can be neither used nor tested" >&2
    fi
}

if [ "$stage" = test ]; then
    header=$(.venv/bin/python -c 'import sysconfig; print(sysconfig.get_path("include"))')/Python.h
    set_up_cameras
    if [ "$(uname -m)" = x86_64 ]; then
        { command -v gcc && command -v g++ && command -v nm; } >/dev/null || apt_install gcc g++ binutils
        [ -f "$header" ] || apt_install python3-dev
        [ -f /usr/include/modbus/modbus.h ] || apt_install libmodbus-dev
        tests/setup_gpu.sh .venv
    fi
fi
for done in $stages; do touch ".venv/$done"; done
