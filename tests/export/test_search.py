"""The precision search: in which order nodes get a higher precision, and how many of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from export.precisions import Quantiser, Result
from export.search import LEAST, Cost, NodeLoss, kept_by, last_steps, map_error, rank_nodes, steps_of

SIZE = (32, 32, 1)
IMAGES = np.random.default_rng(0).integers(0, 256, (6, *SIZE), np.uint8)


def test_the_error_of_maps_is_noise_over_signal():
    reference = np.array([[0, 0, 0], [0, 0, 3]], np.float32)
    assert map_error([reference], [reference]) == 0
    assert map_error([reference], [reference + np.float32(0.1)]) == pytest.approx(0.1 / np.sqrt(1.5), rel=1e-5)
    assert map_error([reference], [reference * np.nan]) > 1e5
    flat = np.zeros((2, 3), np.float32)  # the map of a good part of some networks
    assert map_error([flat, reference], [flat + np.float32(0.1), reference]) == pytest.approx(0.1 / np.sqrt(1.5),
                                                                                              rel=1e-5)


ERRORS = {"a": 0.01, "b": 0.5, "c": 0.5, "d": 0.02}
REFERENCE = [np.array([[0.0, 1.0], [0.0, -1.0]], np.float32)]


def write_names(path: Path, kept: dict[str, str]) -> None:
    path.write_text(",".join(f"{name}:{kept.get(name, 'int8')}" for name in ERRORS))


def maps_by_names(path: Path) -> list[np.ndarray]:
    """Maps with the errors of the nodes in INT8; in bfloat16 a tenth of that, for "d" three times as much."""
    parts = dict(word.split(":") for word in path.read_text().split(","))
    factor = {"int8": dict.fromkeys(ERRORS, 1.0), "bf16": dict.fromkeys(ERRORS, 0.1) | {"d": 3.0},
              "fp32": dict.fromkeys(ERRORS, 0.0)}
    return [REFERENCE[0] + np.float32(sum(ERRORS[name] * factor[kind][name] for name,
                                          kind in parts.items()) * np.sqrt(0.5))]


SHARES = {"a": 10 / 130, "b": 10 / 130, "c": 100 / 130, "d": 10 / 130}


def test_the_search_gives_float_back_to_the_worst_for_their_cost(tmp_path):
    ranked = rank_nodes(SHARES, None, write_names, maps_by_names, REFERENCE, tmp_path, float("inf"), lambda *_: None)
    assert [loss.name for loss in ranked] == ["b", "c", "d", "a"]
    assert ranked[0] == NodeLoss("b", pytest.approx(0.5, rel=1e-3), 10 / 130, "fp32", pytest.approx(30 / 130))
    late = rank_nodes(SHARES, None, write_names, maps_by_names, REFERENCE, tmp_path, 0.0, lambda *_: None)
    assert {loss.error for loss in late} == {None} and late[-1].name == "c"


def test_the_way_to_float32_leads_by_bfloat16_where_that_is_worth_it(tmp_path):
    ranked = rank_nodes(SHARES, None, write_names, maps_by_names, REFERENCE, tmp_path, float("inf"), lambda *_: None,
                        halves=True)
    assert [(loss.name, loss.precision) for loss in ranked] == [
        ("b", "bf16"), ("c", "bf16"), ("b", "fp32"), ("d", "fp32"), ("c", "fp32"), ("a", "bf16"), ("a", "fp32")]
    assert [loss.cost for loss in ranked[:3]] == pytest.approx([10 / 130, 100 / 130, 30 / 130])
    assert kept_by(last_steps(ranked[:3])) == {"b": "fp32", "c": "bf16"}


def test_what_a_node_costs_is_measured_where_it_spoils_something(tmp_path):
    asked = []

    def cost_of(name: str) -> Cost:
        asked.append(name)
        return {"b": Cost(0.2, 0.1), "c": Cost(0.001, 0.002), "d": Cost(0.1, 0.3)}[name]

    ranked = rank_nodes(SHARES, cost_of, write_names, maps_by_names, REFERENCE, tmp_path, float("inf"), lambda *_: None,
                        halves=True)
    assert asked == ["b", "c"]  # "d" and "a" do too little harm
    assert [(loss.name, loss.precision, loss.cost) for loss in ranked[:3]] == [
        ("c", "bf16", 0.001), ("b", "fp32", 0.1), ("c", "fp32", 0.002)]


def test_bfloat16_that_costs_nothing_comes_first_and_one_that_costs_what_float32_does_is_left_out():
    assert steps_of(0.4, 0.2, Cost(-0.1, 0.3))[0] == ("bf16", pytest.approx(0.12 / LEAST))
    assert steps_of(0.4, 0.2, Cost(0.3, 0.3)) == [("fp32", pytest.approx(0.16 / 0.3))]
    assert steps_of(0.4, 0.5, Cost(0.1, 0.4)) == [("fp32", pytest.approx(0.16 / 0.4))]


def searching(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, nodes: list[str],
              holds: dict[str, Callable[[list[str]], bool]],
              costly: str = "") -> tuple[Quantiser, list[tuple[str, list[str]]]]:
    """A search whose gates pass if ``holds`` is true for the kept nodes, and a list of its questions to each gate. One
    node is expensive.
    """
    asked: list[tuple[str, list[str]]] = []
    search = object.__new__(Quantiser)
    search.minutes, search.folder, search.progress = 10, tmp_path, lambda *_: None
    search.trial, search.gate = "trial", "gate"  # type: ignore[assignment]
    search.search_images, search.expected, search.size = IMAGES, [], SIZE

    def gated(result: Result, graph: Path, gate: str, whole: bool = False) -> Result:
        asked.append((gate, [loss.name for loss in result.kept]))
        assert graph.read_text() == ",".join(asked[-1][1])
        result.reason = "" if holds[gate](asked[-1][1]) else "too many turn"
        return result

    monkeypatch.setattr(search, "_gated", gated, raising=False)
    monkeypatch.setattr(search, "_costs", lambda *_: {}, raising=False)
    monkeypatch.setattr(Result, "passed", property(lambda result: not result.reason))
    ranked = [NodeLoss(name, 0.1, 0.01, cost=0.5 if name == costly else 0.005) for name in nodes]
    monkeypatch.setattr("export.precisions.rank_nodes", lambda *_: ranked)
    monkeypatch.setattr("export.precisions.shares", lambda *_: {})
    return search, asked


def write_kept(path: Path, kept: dict[str, str]) -> None:
    path.write_text(",".join(kept))


NODES = [f"node {number:02}" for number in range(40)]


def test_of_the_nodes_in_float_as_few_stay_as_the_gate_allows(tmp_path, monkeypatch):
    holds = {"trial": lambda kept: len(kept) >= 3, "gate": lambda kept: len(kept) >= 5}
    search, asked = searching(tmp_path, monkeypatch, NODES, holds)
    result = search._searched("int8", NODES, [(write_kept, write_kept)])
    assert [(gate, len(kept)) for gate, kept in asked] == [
        ("trial", 0), ("trial", 1), ("trial", 2), ("trial", 3), ("gate", 3), ("trial", 4), ("gate", 4), ("trial", 5),
        ("gate", 5)]
    assert [loss.name for loss in result.kept] == NODES[:5] and result.passed and result.searched
    assert (tmp_path / "int8.onnx").read_text() == (tmp_path / "measured-int8.onnx").read_text() == ",".join(NODES[:5])


def test_a_costly_node_goes_back_where_the_search_can_do_without_it(tmp_path, monkeypatch):
    search, asked = searching(tmp_path, monkeypatch, NODES, {"trial": lambda kept: "node 02" in kept,
                                                             "gate": lambda _: True}, "node 01")
    result = search._searched("int8", NODES, [(write_kept, write_kept)])
    assert asked[-2:] == [("trial", ["node 00", "node 02"]), ("gate", ["node 00", "node 02"])] and result.passed
    assert (tmp_path / "int8.onnx").read_text() == "node 00,node 02"


def test_a_precision_whose_gate_never_holds_is_not_offered(tmp_path, monkeypatch):
    search, asked = searching(tmp_path, monkeypatch, NODES, {"trial": lambda _: False, "gate": lambda _: False})
    result = search._searched("int8", NODES, [(write_kept, write_kept)])
    assert not result.passed and result.kept == [] and len(asked) == 40 and {gate for gate, _ in asked} == {"trial"}
    assert (tmp_path / "int8.onnx").read_text() == ""


def test_a_search_that_runs_out_of_time_shows_what_its_last_graph_turns(tmp_path, monkeypatch):
    search, asked = searching(tmp_path, monkeypatch, NODES, {"trial": lambda _: False, "gate": lambda _: False})
    search.minutes = 0
    result = search._searched("int8", NODES, [(write_kept, write_kept)])
    assert [(gate, len(kept)) for gate, kept in asked] == [("trial", 0),
                                                           ("gate", 1)] and not result.passed and not result.searched


def test_each_way_of_making_the_graph_is_tried_before_another_node_is_given_float(tmp_path, monkeypatch):
    search, _ = searching(tmp_path, monkeypatch, NODES, {"trial": lambda kept: len(kept) == 1, "gate": lambda _: True})
    written = []

    def write_other(path: Path, kept: dict[str, str]) -> None:
        written.append(path.name)
        write_kept(path, kept)

    monkeypatch.setattr(search, "_gated", lambda result, graph, gate, whole=False: replace(
        result, reason="" if written[-1:] == ["measured-int8.onnx"] and result.kept else "too many turn"),
        raising=False)
    result = search._searched("int8", NODES, [(lambda path, kept: (written.append(""), write_kept(path, kept)),
                                               write_kept), (write_other, write_other)])
    assert result.passed and result.way == 1 and [loss.name
                                                  for loss in result.kept] == NODES[:1] and written[-1] == "int8.onnx"
