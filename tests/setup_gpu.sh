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

# PyCUDA's wheel has to be built on each machine. It is linked to a driver by name; which one it runs on is decided when it is loaded.
include=$target/cuda-13.0/nvidia/cu13
gcc -shared -Wl,-soname,libcuda.so.1 -o "$target/lib/libcuda.so" -x c /dev/null
printf 'CUDA_ROOT = "%s"\nCUDA_ENABLE_CURAND = False\nCUDADRV_LIB_DIR = ["%s"]\n' "$(realpath "$include")" "$(realpath "$target/lib")" \
    >"$target/.aksetup-defaults.py"
"$venv/bin/python" -c 'import pycuda' 2>/dev/null || {
    echo "setup: building PyCUDA, some minutes"
    HOME=$(realpath "$target") CFLAGS="-O0 -g0" "$venv/bin/python" -m pip install -q --disable-pip-version-check --no-cache-dir \
        -c constraints.txt --no-binary pycuda pycuda
}
