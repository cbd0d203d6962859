#!/usr/bin/env bash
# Installs Lineside as a service on an industrial PC or a Jetson (Debian or Ubuntu) from this checkout.
#
#   sudo deploy/install.sh             everything: packages, user, virtual environment, unit, rules
#   deploy/install.sh --root DIR       only the files, into DIR (to inspect them, or for an image)
#   sudo deploy/install.sh --no-gpu    without TensorRT and PyCUDA, also where there is a GPU
#
# Run it again to update. Line files in /etc/lineside, journals in /var/lib/lineside and plans in /var/cache/lineside stay as they are.
set -eu
here=$(cd "$(dirname "$0")/.." && pwd)
root=""
gpu=auto
fail() { echo "install: $*" >&2; exit 2; }
while [ $# -gt 0 ]; do
    case $1 in
        --root) [ $# -gt 1 ] || fail "--root needs a folder"; root=$2; shift 2 ;;
        --no-gpu) gpu=no; shift ;;
        *) fail "unknown option $1; expected --root DIR or --no-gpu" ;;
    esac
done

put_files() {
    install -d "$root/etc/systemd/system" "$root/etc/udev/rules.d" "$root/etc/lineside" "$root/var/lib/lineside" "$root/opt/lineside/docs"
    install -m 644 "$here/deploy/lineside@.service" "$root/etc/systemd/system/"
    install -m 644 "$here/deploy/99-lineside-ftdi.rules" "$root/etc/udev/rules.d/"
    install -m 644 "$here"/docs/*.md "$root/opt/lineside/docs/"
}

if [ -n "$root" ]; then
    put_files
    echo "Files are in $root."
    exit 0
fi

[ "$(id -u)" = 0 ] || fail "must run as root; run: sudo $0"
command -v apt-get >/dev/null || fail "expected Debian or Ubuntu with apt-get"
jetson=no
[ -e /etc/nv_tegra_release ] && jetson=yes
if [ "$gpu" = auto ]; then
    gpu=no
    { [ "$jetson" = yes ] || [ -e /proc/driver/nvidia/version ]; } && gpu=yes
fi

[ -z "$(systemctl list-units --state=active --no-legend 'lineside@*' 2>/dev/null)" ] || fail "a line is running; stop it first: systemctl stop 'lineside@*'"
apt-get update -q
packages="python3 python3-venv python3-dev gcc g++"
# On a Jetson, TensorRT and OpenCV with GStreamer come from the system: no package index has builds that fit.
[ "$jetson" = yes ] && packages="$packages python3-libnvinfer python3-opencv"
# shellcheck disable=SC2086
DEBIAN_FRONTEND=noninteractive apt-get install -q -y --no-install-recommends $packages
python3 -c 'import sys; sys.exit(sys.version_info < (3, 10))' || fail "got $(python3 --version), expected 3.10 or later (JetPack 6)"

getent passwd lineside >/dev/null || useradd --system --home-dir /var/lib/lineside --shell /usr/sbin/nologin lineside
for group in dialout video render; do
    if getent group $group >/dev/null; then usermod -aG $group lineside; fi
done

put_files
chown lineside: /var/lib/lineside
install -d -o lineside -m 700 /var/cache/lineside
venv=/opt/lineside/venv
pip="$venv/bin/python -m pip install -q --disable-pip-version-check"
if [ "$jetson" = yes ]; then
    python3 -m venv --clear --system-site-packages $venv
    # The dependencies of pyproject.toml except OpenCV, then the package without its dependencies.
    $pip 'numpy>=1.26,<2' 'openvino>=2025.2' 'pydantic>=2.8' 'pyserial>=3.5' 'rich>=13' 'tomlkit>=0.13' 'typer>=0.15' 'typing-extensions>=4.6'
    $pip --no-deps "$here"
    [ "$gpu" = yes ] && PATH=/usr/local/cuda/bin:$PATH CUDA_ROOT=/usr/local/cuda $pip 'pycuda>=2024.1'
elif [ "$gpu" = yes ]; then
    [ -x /usr/local/cuda/bin/nvcc ] || command -v nvcc >/dev/null || fail "PyCUDA needs the CUDA toolkit; see docs/gpu-pc.md, or use --no-gpu"
    python3 -m venv --clear $venv
    PATH=/usr/local/cuda/bin:$PATH CUDA_ROOT=/usr/local/cuda $pip "$here[tensorrt]"
else
    python3 -m venv --clear $venv
    $pip "$here"
fi

# Optional packages of some PLC links and cameras.
$pip 'pymodbus>=3.10,<4' || echo "install: no pymodbus: no PLC link of kind \"modbus\"" >&2
{ DEBIAN_FRONTEND=noninteractive apt-get install -q -y --no-install-recommends gir1.2-aravis-0.8 libgirepository1.0-dev libcairo2-dev pkg-config \
    && $pip 'PyGObject>=3.42,<3.51'; } || echo "install: no Aravis or PyGObject: no cameras of kind \"genicam\"" >&2

systemctl daemon-reload
udevadm control --reload || true
echo "Installed. What this machine can do:"
runuser -u lineside -- env XDG_CACHE_HOME=/var/cache $venv/bin/lineside doctor || true
echo "Next: docs/gpu-pc.md, As a service: a line file with its journal in /var/lib/lineside, a bundle, then: systemctl enable --now lineside@NAME"
