"""`lineside reload`: a running line takes another bundle, or the old bundle stays live."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import threading
import time
from functools import partial

import numpy as np
import onnx
import pytest

from edge.base.errors import BundleError
from edge.bundle.bundle import load_bundle
from edge.images.files import write_image
from edge.run.commands import CommandServer, ask_to_reload, socket_path
from tests.edge.inspection.test_golden import seal_again, spoil
from tests.rig import LINESIDE, Rig, children, finish, reconcile, wait_for


def with_threshold(bundle, factor: float) -> float:
    """Scale the threshold of a bundle and seal it again, as `calibrate` does."""
    from edge.bundle.decision import write_threshold

    loaded = load_bundle(bundle)
    old = loaded.calibrated_threshold("fp32", "openvino")
    new = old.model_copy(update={"value": old.value * factor})
    write_threshold(bundle, new, loaded.graph_sha256("fp32"), loaded.decision.rule_sha256(bundle))
    return new.value


def test_a_new_threshold_goes_live_between_two_parts_and_each_part_says_by_which_it_was_judged(rig, cloth, lineside):
    made = rig(loop=True)
    plc = made.plc(45, 10)
    line = made.run("--parts", "45")
    wait_for(lambda: len(made.rows()) > 5)
    value = with_threshold(made.folder / "bundle", 1.5)
    code, out, err = lineside("reload", made.folder / "line.toml", "--json")
    assert code == 0, err
    assert f"threshold {value:.6g}" in json.loads(out)["text"]
    ledger, messages = finish(line)
    summary, _ = finish(plc)
    reconcile(ledger, summary, made.rows())
    assert "is live" in messages
    runs = made.query("SELECT run, threshold FROM runs ORDER BY run")
    assert [run["threshold"] for run in runs] == [pytest.approx(value / 1.5), pytest.approx(value)]
    rows = made.rows()
    assert {row["run"] for row in rows} == {run["run"] for run in runs}
    for row in rows:
        if row["verdict"] != "UNINSPECTED":
            threshold = next(run["threshold"] for run in runs if run["run"] == row["run"])
            assert (row["verdict"] == "REJECT") == (row["score"] > threshold)
    assert not socket_path(made.folder / "journal.db", made.folder / "line.toml").exists()


def test_a_faulty_bundle_does_not_go_live_and_the_line_goes_on(rig, lineside):
    made = rig(loop=True)
    plc = made.plc(45, 10)
    line = made.run("--parts", "45")
    wait_for(lambda: len(made.rows()) > 5)
    spoil(made.folder / "bundle")
    code, _, err = lineside("reload", made.folder / "line.toml")
    assert code == 2 and "golden part 0" in err and "the old bundle stays live" in err
    with_new_seal(made.folder / "bundle")
    code, _, err = lineside("reload", made.folder / "line.toml")
    assert code == 2 and "golden part 0" in err and "the old bundle stays live" in err
    file = made.folder / "line.toml"
    file.write_text(file.read_text().replace("lead_ms = 100", "lead_ms = 150"))
    code, _, err = lineside("reload", made.folder / "line.toml")
    assert code == 2 and "[belt]" in err and "start it again" in err
    ledger, _ = finish(line)
    summary, _ = finish(plc)
    reconcile(ledger, summary, made.rows())
    assert {row["run"] for row in made.rows()} == {1} and len(made.query("SELECT * FROM runs")) == 1


def with_new_seal(bundle) -> None:
    """Seal the threshold for the graph that lies there now, without scoring a part."""
    from edge.bundle.decision import Threshold, write_threshold

    loaded = load_bundle(bundle)
    old = Threshold(**loaded.decision.threshold[0].model_dump())
    write_threshold(bundle, old, loaded.graph_sha256("fp32"), loaded.decision.rule_sha256(bundle))


def test_a_faulty_bundle_does_not_start(rig):
    made = rig()
    spoil(made.folder / "bundle")
    with_new_seal(made.folder / "bundle")
    made.plc(0)
    line = made.run()
    _, err = finish(line)
    assert line.returncode == 2 and "golden part 0" in err and "Traceback" not in err
    assert not (made.folder / "journal.db").exists()


def test_a_line_runs_in_int8_and_a_faulty_graph_of_it_does_not_go_live(tmp_path, bundle_of, cloth, lineside):
    (tmp_path / "line").mkdir()
    made = Rig(tmp_path / "line", bundle_of, cloth / "test", loop=True)
    try:
        plc = made.plc(40, 10)
        line = made.run("--parts", "40", "--precision", "int8")
        wait_for(lambda: len(made.rows()) > 5)
        graph = made.folder / "bundle" / "model" / "int8.onnx"
        model = onnx.load(graph)
        used = [node.input[1] for node in model.graph.node if node.op_type == "DequantizeLinear"]
        scale = next(value for value in model.graph.initializer if value.name == used[-1])
        scale.CopyFrom(onnx.numpy_helper.from_array(np.asarray(8 * onnx.numpy_helper.to_array(scale)), scale.name))
        onnx.save(model, graph)
        seal_again(made.folder / "bundle")
        code, _, err = lineside("reload", made.folder / "line.toml")
        assert code == 2 and "golden part 0" in err and "in int8 on openvino" in err
        assert "the old bundle stays live" in err
        ledger, messages = finish(line)
        summary, _ = finish(plc)
        reconcile(ledger, summary, made.rows())
        assert "is ready in int8" in messages and ledger["uninspected"] == 0
        limit = load_bundle(bundle_of).calibrated_threshold("int8", "openvino").value
        assert [run["threshold"] for run in made.query("SELECT threshold FROM runs")] == [pytest.approx(limit)]
    finally:
        for process in made.processes:
            process.kill()
            process.wait()


def test_without_a_running_line_there_is_nothing_to_reload(rig, lineside):
    made = rig()
    code, _, err = lineside("reload", made.folder / "line.toml")
    assert code == 2 and "no line runs" in err and "lineside run" in err


def test_a_line_that_was_killed_leaves_no_socket_in_the_way(rig, lineside):
    made = rig(loop=True)
    made.plc(0, 10)
    line = made.run()
    wait_for(lambda: len(made.rows()) > 2)
    for pid in [line.pid, *children(line).values()]:
        os.kill(pid, signal.SIGKILL)
    line.wait()
    assert socket_path(made.folder / "journal.db", made.folder / "line.toml").exists()
    code, _, err = lineside("reload", made.folder / "line.toml")
    assert code == 2 and "no line runs" in err
    before = len(made.rows())
    again = made.run()
    wait_for(lambda: len(made.rows()) > before)
    assert lineside("reload", made.folder / "line.toml")[0] == 0
    again.send_signal(signal.SIGTERM)
    assert finish(again)[0]["triggers"] > 0


def test_a_socket_may_lie_deep_and_a_defect_in_reloading_is_reported(tmp_path):
    deep = tmp_path / ("folder" * 20)
    deep.mkdir()
    journal, line = deep / "journal.db", deep / "line.toml"
    server = CommandServer(socket_path(journal, line), {"reload": lambda: str(1 / 0)})
    try:
        with pytest.raises(BundleError, match="the old bundle stays live: ZeroDivisionError"):
            ask_to_reload(journal, line)
    finally:
        server.close()
    assert not socket_path(journal, line).exists()


def test_two_lines_with_one_journal_are_asked_each_on_its_own(tmp_path):
    journal, lines = tmp_path / "journal.db", [tmp_path / "a.toml", tmp_path / "b.toml"]
    servers = [CommandServer(socket_path(journal, line), {"reload": partial("{} is live".format, line.name)})
               for line in lines]
    try:
        assert [ask_to_reload(journal, line) for line in lines] == ["a.toml is live", "b.toml is live"]
        servers.pop().close()
        assert ask_to_reload(journal, lines[0]) == "a.toml is live"
    finally:
        for server in servers:
            server.close()


def test_a_stop_waits_for_a_reload_that_is_under_way(tmp_path):
    under_way, ended = threading.Event(), []

    def slow() -> str:
        under_way.set()
        time.sleep(1.0)
        ended.append(True)
        return "live"

    server = CommandServer(socket_path(tmp_path / "j", tmp_path / "l"), {"reload": slow})
    asking = threading.Thread(target=ask_to_reload, args=(tmp_path / "j", tmp_path / "l"))
    asking.start()
    assert under_way.wait(5)
    server.close()
    assert ended == [True]
    asking.join(5)


def test_a_line_stopped_while_it_loads_another_bundle_ends_well(rig):
    made = rig(loop=True)
    made.plc(0, 10)
    line = made.run()
    wait_for(lambda: len(made.rows()) > 2)
    asking = subprocess.Popen([*LINESIDE, "reload", str(made.folder / "line.toml")], stdout=subprocess.PIPE,
                              stderr=subprocess.PIPE)
    made.processes.append(asking)
    time.sleep(0.2)  # into the loading
    line.send_signal(signal.SIGTERM)
    ledger, err = finish(line)
    assert line.returncode == 0 and ledger["triggers"] > 0, err
    asking.wait(30)
    assert asking.returncode in (0, 2)


def test_what_cannot_judge_the_frames_that_come_does_not_go_live(rig, lineside):
    made = rig(loop=True)
    made.plc(0, 10)
    line = made.run()
    wait_for(lambda: len(made.rows()) > 2)
    bundle = made.folder / "bundle"
    write_image(bundle / "ignore.png", np.zeros((50, 50), np.uint8))
    path = bundle / "decision.toml"
    path.write_text(path.read_text().replace('# ignore_mask = "ignore.png"', 'ignore_mask = "ignore.png"'))
    with_new_seal(bundle)
    code, _, err = lineside("reload", made.folder / "line.toml")
    assert code == 2 and "the ignore mask does not fit the frame" in err
    line.send_signal(signal.SIGTERM)
    assert finish(line)[0]["uninspected"] <= 1
