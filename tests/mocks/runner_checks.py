"""Checks of the TensorRT engine on the mocks. Runs in a process of its own: runner_checks.py GRAPH CHECK"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
import threading
import time
import tracemalloc
from pathlib import Path

import numpy as np
import onnxruntime
import tensorrt as trt

from edge.base.errors import EngineError, EngineLostError
from edge.engines.gpu import this_device
from edge.engines.tensorrt import TensorRtEngine
from export.tensorrt import build_plan
from tests.mocks import Driver

GRAPH = Path(sys.argv[1])
SIZE = (64, 64, 1)
OUT_OF_MEMORY, LAUNCH_FAILED, DEVICE_LOST = 2, 701, 719  # 701 (too many resources) is transient, 719 is permanent
driver = Driver()
plan = build_plan(trt, GRAPH, (1, 4, 16), workspace_mb=100)
options = onnxruntime.SessionOptions()
options.intra_op_num_threads = 1  # no threads, so that a check may fork
session = onnxruntime.InferenceSession(GRAPH, options)
images = np.random.default_rng(0).integers(0, 256, (4, *SIZE), np.uint8)
expected = session.run(None, {session.get_inputs()[0].name: images})[0]


def engine_of(slots: int = 2, batch: int = 1) -> TensorRtEngine:
    return TensorRtEngine(plan, SIZE, slots=slots, batch=batch)


def infer(engine: TensorRtEngine, which: int = 0, n: int = 1) -> None:
    """One inference, whose maps must equal ONNX Runtime's to the last bit."""
    slot = engine.lease()
    try:
        slot.input[:n] = images[which : which + n]
        slot.start(n)
        assert np.array_equal(slot.wait(10), expected[which : which + n])
    finally:
        slot.release()


def results_are_onnx_runtimes() -> None:
    engine = engine_of(batch=4)
    assert engine.without_graphs is None
    for n in (4, 3, 2, 1):
        infer(engine, 0, n)
        infer(engine, 4 - n, n)
    engine.close()
    assert not driver.live(), driver.live()


def without_capture_it_says_why() -> None:
    for name in ("cuStreamBeginCapture_v2", "cuStreamEndCapture", "cuGraphInstantiateWithFlags"):
        driver.fail(name, 1, 900)
        engine = engine_of()
        assert "cu" in engine.without_graphs and "CAPTURE" in engine.without_graphs, engine.without_graphs
        for which in range(4):
            infer(engine, which)
        engine.close()
        driver.fail()
        assert {**driver.live(), "graphs": 0} == {"graphs": 0}, driver.live()


def nothing_is_read_before_its_event() -> None:
    """The host's memory holds NaN until the copy runs; the order of operations is recorded."""
    engine = engine_of(slots=2)
    driver.times(3, 3, 10)
    slots = [engine.lease(), engine.lease()]
    driver.trace()
    for round_ in range(4):
        for index, slot in enumerate(slots):
            slot.input[0] = images[(round_ + index) % 4]
            slot.start(1)
        for index, slot in enumerate(slots):
            maps = slot.wait(10)
            driver.note(f"host reads {index}")
            assert np.array_equal(maps[0], expected[(round_ + index) % 4])
    lines = driver.traced()
    driver.trace(False)
    numbers = sorted({line.split()[1] for line in lines if line.startswith("stream")})
    assert len(numbers) == 2
    for index, number in enumerate(numbers):
        own = [line for line in lines if line.startswith(f"stream {number} ") or line == f"host reads {index}"]
        one = [f"stream {number} {moment} {kind}" for kind in ("copy in", "execute", "copy out", "record")
               for moment in ("begins", "ends")]
        # the event is reached a moment before that line
        found = [line for line in own if line != f"stream {number} ends record"]
        assert found == ([*(line for line in one if not line.endswith("ends record")), f"host reads {index}"]) * 4, own
    for slot in slots:
        slot.release()
    engine.close()


def a_slot_in_flight_is_not_used_again() -> None:
    engine = engine_of(slots=1)
    slot = engine.lease()
    driver.times(0, 300, 0)
    slot.input[0] = images[0]
    slot.start(1)
    for action, text in ((lambda: slot.wait(0.02), "did not end in time"), (lambda: slot.start(1), "has not ended")):
        try:
            action()
            raise AssertionError(text)
        except EngineError as error:
            assert text in str(error), error
    assert np.array_equal(slot.wait(10)[0], expected[0])  # the inference itself was left alone
    try:
        slot.wait(1)
        raise AssertionError("a second wait")
    except EngineError as error:
        assert "no inference was started" in str(error)
    driver.times(0, 0, 0)
    slot.release()
    infer(engine, 1)
    slot = engine.lease()
    driver.times(0, 100, 0)
    slot.start(1)
    engine.close()  # waits for it
    assert not driver.live(), driver.live()


def copies_and_execution_overlap() -> None:
    """With copies in, execution and copies out of 8, 20 and 12 ms, and three slots, the period is near the longest and
    far from the sum.
    """
    engine = engine_of(slots=3)
    driver.times(8, 20, 12)
    driver.trace()
    slots = [engine.lease() for _ in range(3)]
    for slot in slots:
        slot.start(1)
    rounds, start = 24, time.monotonic()
    for number in range(rounds):
        slot = slots[number % 3]
        slot.wait(10)
        slot.start(1)
    period = 1000 * (time.monotonic() - start) / rounds
    for slot in slots:
        slot.wait(10)
        slot.release()
    beside, running = 0, set()
    for line in driver.traced():
        words = line.split()
        if words[0] == "stream" and words[-1] != "record":
            (running.add if words[2] == "begins" else running.discard)((words[1], " ".join(words[3:])))
            beside += len({stream for stream, _ in running}) > 1
    driver.times(0, 0, 0)
    engine.close()
    print(json.dumps({"period_ms": round(period, 2), "longest_ms": 20, "sum_ms": 40}))
    assert beside > 40, beside
    assert period < 32, period  # of 20 at best, 40 without overlap; the mock sleeps, so a busy machine adds little


def every_failure_of_the_driver_is_survived() -> None:
    """Each call fails in turn, on the way up, in inferences and on the way down: no hang, no leak, no map that is
    wrong.
    """
    counts = {}
    for code in (OUT_OF_MEMORY, LAUNCH_FAILED):
        failed = []
        while name := _with_failure(len(failed) + 1, code, sticky=False):
            failed.append(name)
        counts[code] = len(failed)
        for nth in range(1, 5):
            assert _with_failure(nth, code, False, "cuEventQuery")
        assert set(failed) >= ALWAYS, failed
    print(json.dumps(counts))


def a_lost_gpu_gives_no_map_whenever_it_is_lost() -> None:
    """Lost at each call in turn, in a process of its own, since nothing can be repaired or freed afterwards."""
    failed: list[str] = []
    while True:
        reading, writing = os.pipe()
        if os.fork() == 0:
            signal.alarm(30)
            code = 1
            with contextlib.suppress(BaseException):
                os.write(writing, _with_failure(len(failed) + 1, DEVICE_LOST, sticky=True).encode())
                code = 0
            os._exit(code)
        os.close(writing)
        name = os.read(reading, 100).decode()
        os.close(reading)
        _, status = os.wait()
        assert status == 0, (failed, len(failed) + 1, status)
        if not name:
            break
        failed.append(name)
    print(json.dumps(len(failed)))
    assert set(failed) >= ALWAYS, failed


ALWAYS = {"cuMemAlloc_v2", "cuMemHostAlloc", "cuStreamCreate", "cuGraphLaunch", "cuEventRecord", "cuCtxPushCurrent_v2"}


def _with_failure(nth: int, code: int, sticky: bool, call: str = "") -> str:
    """Make an engine, inspect four parts and close it, with the nth call failing. Returns that call's name; empty where
    there is none.
    """
    driver.fail(call, nth, code, sticky)
    engine, ended = None, []
    try:
        engine = engine_of()
        for which in range(4):
            try:
                infer(engine, which)
                ended.append("map")
            except EngineError as error:
                ended.append(type(error).__name__)
        assert len(ended) == 4  # every part is accounted for
    except EngineError as error:
        ended = [type(error).__name__]
    while_running = driver.failed()
    if engine is not None:
        engine.close()
    name = driver.failed()
    if sticky:
        if "EngineLostError" in ended:
            assert set(ended[ended.index("EngineLostError"):]) == {"EngineLostError"}, (name, ended)
        else:
            assert engine is None or not while_running or ended.count("map") == 4, (name, ended)
        return name
    driver.fail()
    assert engine is None or (ended.count("EngineError") <= 1 and ended.count("map") >= 3), (name, ended)
    # a failed free leaves its memory allocated
    freeing = any(word in name for word in ("Free", "Destroy", "Release", "EndCapture"))
    assert freeing or not driver.live(), (name, nth, driver.live())
    driver.forget()
    return name


def a_kernel_that_crashes_ends_the_engine() -> None:
    engine = engine_of()
    driver.fail("kernel", 2, DEVICE_LOST)
    infer(engine)
    for _ in range(3):
        try:
            infer(engine)
            raise AssertionError("a map from a lost GPU")
        except EngineLostError as error:
            assert error.exit_code == 3 and "restarted" in str(error)
    engine.close()
    os._exit(0)  # as the runtime ends then


def every_failure_of_tensorrt_is_named() -> None:
    for name in ("deserialize_cuda_engine", "create_execution_context", "set_input_shape", "execute_async_v3"):
        trt.failures[name] = 1
        try:
            engine_of().close()
            raise AssertionError(name)
        except EngineError as error:
            assert "TensorRT" in str(error) and "lineside engine" in str(error), error
        assert not driver.live(), (name, driver.live())
    driver.fail("cuStreamBeginCapture_v2", 1, 900)
    engine = engine_of(slots=1)
    trt.failures["execute_async_v3"] = 1
    try:
        infer(engine)
        raise AssertionError("execute_async_v3")
    except EngineError as error:
        assert not isinstance(error, EngineLostError), error
    infer(engine, 1)  # it was transient
    engine.close()
    assert not driver.live(), driver.live()


def any_thread_may_use_it() -> None:
    """As a line reloads: made in one thread, used in a second, closed in a third."""
    kept, errors = [], []

    def guarded(action) -> None:
        def run() -> None:
            try:
                action()
            except BaseException as error:
                errors.append(error)

        thread = threading.Thread(target=run)
        thread.start()
        thread.join()

    guarded(lambda: kept.append(engine_of()))
    guarded(lambda: infer(kept[0]))
    infer(kept[0], 2)
    guarded(lambda: kept[0].close())
    assert not errors, errors
    assert not driver.live(), driver.live()


def a_steady_state_allocates_nothing() -> None:
    for captured in (True, False):
        if not captured:
            driver.fail("cuStreamBeginCapture_v2", 1, 900)
        engine = engine_of(slots=1)
        slot = engine.lease()

        def run(count: int, slot=slot) -> None:
            for _ in range(count):
                slot.start(1)
                slot.wait(10)

        run(50)
        tracemalloc.start(5)
        run(50)
        before, calls = tracemalloc.take_snapshot(), driver.live()
        run(1000)
        after = tracemalloc.take_snapshot()
        tracemalloc.stop()
        here = [tracemalloc.Filter(True, "*/edge/engines/*"), tracemalloc.Filter(True, "*pycuda*")]
        grown = [line for line in after.filter_traces(here).compare_to(before.filter_traces(here), "lineno")
                 if line.size_diff > 0]
        print(json.dumps({"captured": captured, "bytes": sum(line.size_diff for line in grown)}))
        assert sum(line.size_diff for line in grown) < 1000, [str(line) for line in grown]  # less than a byte each
        assert driver.live() == calls
        slot.release()
        engine.close()


def what_does_not_fit_is_refused() -> None:
    for size, text in (((32, 32, 1), "another network"), ((64, 64, 3), "another network")):
        try:
            TensorRtEngine(plan, size, slots=1, batch=1)
            raise AssertionError(text)
        except EngineError as error:
            assert text in str(error), error
    try:
        TensorRtEngine(b"something else", SIZE, slots=1, batch=1)
        raise AssertionError("no plan")
    except EngineError as error:
        assert "the plan is of another version" in str(error), error
    assert not driver.live(), driver.live()
    assert this_device().gpu == "mock without a GPU"


def a_map_of_free_size_is_asked_for() -> None:
    import onnx

    model = onnx.load(GRAPH)
    for dim in model.graph.output[0].type.tensor_type.shape.dim[2:]:
        dim.Clear()
        dim.dim_param = "free"
    engine = TensorRtEngine(trt.MARK + model.SerializeToString(), SIZE, slots=1, batch=2)
    infer(engine, 1, 2)
    engine.close()
    assert not driver.live(), driver.live()


def layers_are_timed() -> None:
    engine = engine_of()
    assert engine.layer_times(5) == {"the whole graph": 1.0}
    engine.close()
    assert not driver.live(), driver.live()


if __name__ == "__main__":
    globals()[sys.argv[2]]()
