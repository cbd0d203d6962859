#!/usr/bin/env bash
# For the tests of the TensorRT path on a machine without a GPU: PyCUDA, built over CUDA's headers alone, and what each supported version of
# TensorRT and CUDA declares. Everything lands in the virtual environment. Usage: setup_gpu.sh VENV
set -eu
venv=$1
target=$venv/gpu
pip="$venv/bin/python -m pip install -q --disable-pip-version-check --no-deps"
rm -rf "$target"
mkdir -p "$target/lib"

for version in 10.3.0 10.7.0 10.13.2.6 10.16.1.11 11.4.0.106; do # bindings alone: 1 MB each
    $pip --target "$target/tensorrt-$version" "tensorrt-cu12-bindings==$version"
done
$pip --target "$target/cuda-12.6" nvidia-cuda-runtime-cu12==12.6.77 # of JetPack 6
$pip --target "$target/cuda-13.0" nvidia-cuda-runtime==13.0.96 nvidia-cuda-profiler-api==13.0.85

# PyCUDA's wheel has to be built on each machine. It is linked to a driver by name; which one it runs on is decided when it is loaded. The
# stand-in defines what the header declares, since a linker that is told --as-needed (some Pythons tell it so) leaves out a library that gives nothing.
include=$target/cuda-13.0/nvidia/cu13
grep -ohE '\bcu[A-Z][A-Za-z0-9_]*' "$include/include/cuda.h" "$include/include/cudaProfiler.h" | sort -u | sed 's/.*/void &(void) {}/' \
    | gcc -shared -w -Wl,-soname,libcuda.so.1 -o "$target/lib/libcuda.so" -x c -
printf 'CUDA_ROOT = "%s"\nCUDA_ENABLE_CURAND = False\nCUDADRV_LIB_DIR = ["%s"]\n' "$(realpath "$include")" "$(realpath "$target/lib")" \
    >"$target/.aksetup-defaults.py"
linked() { readelf -d "$venv"/lib/python3*/site-packages/pycuda/_driver*.so 2>/dev/null | grep -q 'libcuda\.so\.1'; }
linked || {
    echo "setup: building PyCUDA, some minutes"
    "$venv/bin/python" -m pip uninstall -q -y pycuda 2>/dev/null
    HOME=$(realpath "$target") CFLAGS="-O0 -g0" "$venv/bin/python" -m pip install -q --disable-pip-version-check --no-cache-dir \
        -c constraints.txt --no-binary pycuda pycuda
    linked || { echo "setup: PyCUDA was built without the driver's library (libcuda.so.1)" >&2; exit 2; }
}
