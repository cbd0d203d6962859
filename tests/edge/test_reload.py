"""`lineside reload`: a running line takes another bundle, or goes on with what it had."""

from __future__ import annotations

import json
import os
import shutil
import signal

import pytest
from rig import finish, reconcile, rig, wait_for
from test_golden import spoil

from edge.bundle import load_bundle
from edge.reload import ReloadServer, ask_to_reload, socket_path

__all__ = ["rig"]


def with_threshold(bundle, factor: float) -> float:
    """Scale the threshold of a bundle and seal it again, as `calibrate` does."""
    from edge.decision import write_threshold

    loaded = load_bundle(bundle)
    old = loaded.calibrated_threshold("fp32", "openvino")
    new = old.model_copy(update={"value": old.value * factor})
    write_threshold(bundle, new, loaded.graph_sha256("fp32"), loaded.decision.rule_sha256(bundle))
    return new.value


def test_a_new_threshold_goes_live_between_two_parts_and_each_part_says_by_which_it_was_judged(rig, cloth, lineside):
    made = rig(loop=True)
    plc = made.plc(60, 10)
    line = made.run("--parts", "60")
    wait_for(lambda: len(made.rows()) > 5)
    value = with_threshold(made.folder / "bundle", 1.5)
    code, out, err = lineside("reload", made.folder / "line.toml", "--json")
    assert code == 0, err
    assert f"threshold {value:.6g}" in json.loads(out)["text"]
    ledger, told = finish(line)
    summary, _ = finish(plc)
    reconcile(ledger, summary, made.rows())
    assert "is live" in told
    runs = made.query("SELECT run, threshold FROM runs ORDER BY run")
    assert [run["threshold"] for run in runs] == [pytest.approx(value / 1.5), pytest.approx(value)]
    rows = made.rows()
    assert {row["run"] for row in rows} == {run["run"] for run in runs}
    for row in rows:
        if row["verdict"] != "UNINSPECTED":
            threshold = next(run["threshold"] for run in runs if run["run"] == row["run"])
            assert (row["verdict"] == "REJECT") == (row["score"] > threshold)
    assert not socket_path(made.folder / "journal.db").exists()


def test_a_spoilt_bundle_does_not_go_live_and_the_line_goes_on(rig, lineside):
    made = rig(loop=True)
    plc = made.plc(60, 10)
    line = made.run("--parts", "60")
    wait_for(lambda: len(made.rows()) > 5)
    spoil(made.folder / "bundle")
    code, _, err = lineside("reload", made.folder / "line.toml")
    assert code == 2 and "the line goes on with what it had" in err
    assert "was changed after it was calibrated" in err  # the graph's hash is in the threshold's seal
    with_new_seal(made.folder / "bundle")
    code, _, err = lineside("reload", made.folder / "line.toml")
    assert code == 2 and "golden part 0" in err and "the line goes on with what it had" in err
    (made.folder / "line.toml").write_text((made.folder / "line.toml").read_text().replace("lead_ms = 100", "lead_ms = 150"))
    code, _, err = lineside("reload", made.folder / "line.toml")
    assert code == 2 and "[belt]" in err and "start it again" in err
    ledger, _ = finish(line)
    summary, _ = finish(plc)
    reconcile(ledger, summary, made.rows())
    assert {row["run"] for row in made.rows()} == {1} and len(made.query("SELECT * FROM runs")) == 1


def with_new_seal(bundle) -> None:
    """Seal the threshold for the graph that lies there now, without scoring a part."""
    from edge.decision import Threshold, write_threshold

    loaded = load_bundle(bundle)
    old = Threshold(**loaded.decision.threshold[0].model_dump())
    write_threshold(bundle, old, loaded.graph_sha256("fp32"), loaded.decision.rule_sha256(bundle))


def test_a_spoilt_bundle_does_not_start(rig):
    made = rig()
    spoil(made.folder / "bundle")
    with_new_seal(made.folder / "bundle")
    line = made.run()
    _, err = finish(line)
    assert line.returncode == 2 and "golden part 0" in err and "Traceback" not in err
    assert not (made.folder / "journal.db").exists()


def test_without_a_running_line_there_is_nothing_to_reload(rig, lineside):
    made = rig()
    code, _, err = lineside("reload", made.folder / "line.toml")
    assert code == 2 and "no line runs" in err and "lineside run" in err


def test_a_line_that_was_killed_leaves_no_socket_in_the_way(rig, lineside):
    made = rig(loop=True)
    made.plc(0, 10)
    line = made.run()
    wait_for(lambda: len(made.rows()) > 2)
    os.kill(line.pid, signal.SIGKILL)
    line.wait()
    assert socket_path(made.folder / "journal.db").exists()
    code, _, err = lineside("reload", made.folder / "line.toml")
    assert code == 2 and "no line runs" in err
    before = len(made.rows())
    again = made.run()
    wait_for(lambda: len(made.rows()) > before)
    assert lineside("reload", made.folder / "line.toml")[0] == 0
    again.send_signal(signal.SIGTERM)
    assert finish(again)[0]["triggers"] > 0


def test_a_socket_may_lie_deep_and_a_defect_in_reloading_is_told(tmp_path):
    deep = tmp_path / ("folder" * 20)
    deep.mkdir()
    journal = deep / "journal.db"
    server = ReloadServer(socket_path(journal), lambda: 1 / 0)
    try:
        with pytest.raises(Exception, match="goes on with what it had: ZeroDivisionError"):
            ask_to_reload(journal, deep / "line.toml")
    finally:
        server.close()
    assert not socket_path(journal).exists()
    shutil.rmtree(deep)
