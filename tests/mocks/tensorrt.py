"""TensorRT's names without a GPU: a "plan" is the ONNX graph, and executing it runs ONNX Runtime on the stream of the
driver mock.

It has only what our code calls. tests/tensorrt_api.py checks that all versions of the real TensorRT have these names.
"""

from __future__ import annotations

import ctypes
import enum
import os

import numpy as np
import onnx
import onnxruntime

__version__ = os.environ.get("MOCK_TENSORRT_VERSION", "10.13.2.6")
MARK = b"plan of the mock\n"
failures: dict[str, int] = {}  # name of a call -> which of the following calls fails, counted from 1
_driver = ctypes.CDLL("libcuda.so.1")
_HOST_FUNCTION = ctypes.CFUNCTYPE(None, ctypes.c_void_p)
_driver.cuLaunchHostFunc.argtypes = [ctypes.c_void_p, _HOST_FUNCTION, ctypes.c_void_p]


def _fails(name: str) -> bool:
    if name in failures:
        failures[name] -= 1
        if failures[name] == 0:
            del failures[name]
            return True
    return False


class TensorIOMode(enum.Enum):
    NONE, INPUT, OUTPUT = range(3)


class DataType(enum.Enum):
    FLOAT, HALF, INT8, UINT8 = range(4)


class NetworkDefinitionCreationFlag(enum.IntEnum):
    EXPLICIT_BATCH, STRONGLY_TYPED = range(2)


class MemoryPoolType(enum.Enum):
    WORKSPACE = 0


class BuilderFlag(enum.Enum):
    TF32 = 0


class ProfilingVerbosity(enum.Enum):
    LAYER_NAMES_ONLY, DETAILED = range(2)


class ILogger:
    class Severity(enum.IntEnum):
        INTERNAL_ERROR, ERROR, WARNING, INFO, VERBOSE = range(5)


class IProgressMonitor:
    pass


class IProfiler:
    pass


class _Network:
    def __init__(self):
        self.graph = None

    @property
    def num_inputs(self):
        return len(self.graph.graph.input)

    def get_input(self, index):
        return _Tensor(self.graph.graph.input[index])


class _Tensor:
    def __init__(self, value):
        self.name, self.shape = value.name, _shape(value)


def _shape(value):
    return tuple(d.dim_value or -1 for d in value.type.tensor_type.shape.dim)


class _ParserError:
    def __init__(self, text):
        self._text = text

    def desc(self):
        return self._text


class OnnxParser:
    def __init__(self, network, logger):
        self._network, self._errors = network, []

    @property
    def num_errors(self):
        return len(self._errors)

    def get_error(self, index):
        return self._errors[index]

    def parse(self, data):
        try:
            self._network.graph = onnx.load_from_string(data)
        except Exception as error:
            self._errors.append(_ParserError(str(error)))
            return False
        return not _fails("parse")


class _Profile:
    def set_shape(self, name, least, best, most):
        self.shapes = least, best, most


class _TimingCache:
    def __init__(self, data):
        self.data = bytes(data)

    def serialize(self):
        return self.data + b"timed"


class _Config:
    progress_monitor = None
    profiling_verbosity = ProfilingVerbosity.LAYER_NAMES_ONLY

    def set_memory_pool_limit(self, pool, size):
        self.workspace = size

    def clear_flag(self, flag):
        pass

    def create_timing_cache(self, data):
        return _TimingCache(data)

    def set_timing_cache(self, cache, ignore_mismatch):
        self._cache = cache
        return True

    def get_timing_cache(self):
        return self._cache

    def add_optimization_profile(self, profile):
        least, best, most = profile.shapes
        return 0 if all(a <= b <= c for a, b, c in zip(least, best, most, strict=True)) else -1


class Builder:
    def __init__(self, logger):
        self._logger = logger

    def create_network(self, flags):
        assert flags == 1 << NetworkDefinitionCreationFlag.STRONGLY_TYPED
        return _Network()

    def create_builder_config(self):
        return _Config()

    def create_optimization_profile(self):
        return _Profile()

    def build_serialized_network(self, network, config):
        monitor = config.progress_monitor
        if monitor is not None:
            monitor.phase_start("building", None, 2)
            for step in range(2):
                if not monitor.step_complete("building", step):
                    return None
            monitor.phase_finish("building")
        if _fails("build_serialized_network"):
            self._logger.log(ILogger.Severity.ERROR, "no tactic was found")
            return None
        return MARK + network.graph.SerializeToString()


class Runtime:
    def __init__(self, logger):
        self._logger = logger

    def deserialize_cuda_engine(self, plan):
        if not plan.startswith(MARK) or _fails("deserialize_cuda_engine"):
            self._logger.log(ILogger.Severity.ERROR, "the plan is of another version")
            return None
        return _Engine(bytes(plan[len(MARK) :]))


class _Engine:
    def __init__(self, graph):
        self._graph = graph
        found = onnx.load_from_string(graph).graph
        self._tensors = {value.name: value for value in [*found.input, *found.output]}
        self._modes = {value.name: TensorIOMode.INPUT for value in found.input}

    @property
    def num_io_tensors(self):
        return len(self._tensors)

    def get_tensor_name(self, index):
        return list(self._tensors)[index]

    def get_tensor_mode(self, name):
        return self._modes.get(name, TensorIOMode.OUTPUT)

    def get_tensor_shape(self, name):
        return _shape(self._tensors[name])

    def get_tensor_dtype(self, name):
        return {1: DataType.FLOAT, 2: DataType.UINT8}[self._tensors[name].type.tensor_type.elem_type]

    def create_execution_context(self):
        return None if _fails("create_execution_context") else _Context(self._graph)


class _Context:
    profiler = None

    def __init__(self, graph):
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        self._session = onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
        self._given, self._got = self._session.get_inputs()[0].name, self._session.get_outputs()[0].name
        self._addresses, self._function = {}, _HOST_FUNCTION(self._run)

    def set_input_shape(self, name, shape):
        self._shape = shape
        return not _fails("set_input_shape")

    def get_tensor_shape(self, name):
        assert name == self._got
        return self._session.run(None, {self._given: np.zeros(self._shape, np.uint8)})[0].shape

    def set_tensor_address(self, name, address):
        self._addresses[name] = address
        return not _fails("set_tensor_address")

    def execute_async_v3(self, stream):
        if _fails("execute_async_v3"):
            return False
        return _driver.cuLaunchHostFunc(stream, self._function, None) == 0

    def _run(self, _):
        size = int(np.prod(self._shape))
        given = (ctypes.c_uint8 * size).from_address(self._addresses[self._given])
        image = np.ctypeslib.as_array(given).reshape(self._shape)
        result = self._session.run(None, {self._given: image})[0]
        ctypes.memmove(self._addresses[self._got], np.ascontiguousarray(result).ctypes.data, result.nbytes)
        if self.profiler is not None:
            self.profiler.report_layer_time("the whole graph", 1.0)
