import csv
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge.base.errors import InputError
from edge.images.files import list_images, read_image
from simulation.render.defects import DEFECTS, Plate, changed_pixels, is_visible
from simulation.render.surface import KINDS, RenderedPart, Surface, render_folder, render_sequence
from simulation.render.textures import Cloth, noise

EVERY = [(kind, defect) for kind in KINDS for defect in DEFECTS[kind]]
few = settings(max_examples=15, deadline=None, derandomize=True)


def web(surface: Surface, y0: int, height: int) -> np.ndarray:
    """Noise-free reflectance of px ``y0`` to ``y0 + height`` of a woven web, before any light."""
    assert isinstance(surface._product, Cloth)
    return surface._product.web(y0, height).reflectance(None)[0]


def plate_of(surface: Surface, index: int) -> Plate:
    piece = surface._product.piece(index)
    assert isinstance(piece, Plate)
    return piece


@pytest.mark.parametrize("kind", KINDS)
def test_a_part_is_a_uint8_frame_of_its_kind_with_an_empty_mask_when_good(kind: str) -> None:
    part = Surface(kind, 3, 128).part(7)
    assert part.frame.shape == (128, 128, 1 if kind == "woven" else 3)
    assert part.frame.dtype == np.uint8 and part.frame.flags.c_contiguous
    assert part.mask.shape == (128, 128) and part.mask.dtype == np.uint8 and not part.mask.any()
    assert part.label == "good"
    assert part.frame.std() > 10


@pytest.mark.parametrize("kind", KINDS)
@few
@given(seed=st.integers(0, 2**32), index=st.integers(0, 10**6), turned=st.booleans(), defective=st.booleans())
def test_a_part_depends_on_its_arguments_alone(kind: str, seed: int, index: int, turned: bool, defective: bool) -> None:
    defect = DEFECTS[kind][seed % 4] if defective else None
    used = Surface(kind, seed, 64, turned)
    used.part(index + 1)  # what was asked before must not matter
    one, other = used.part(index, defect), Surface(kind, seed, 64, turned).part(index, defect)
    np.testing.assert_array_equal(one.frame, other.frame)
    np.testing.assert_array_equal(one.mask, other.mask)


def test_a_numpy_index_renders_the_same_part() -> None:
    surface = Surface("woven", 1, 64)
    np.testing.assert_array_equal(surface.part(40_000_000).frame, surface.part(np.int32(40_000_000)).frame)


@pytest.mark.parametrize("kind", KINDS)
def test_seeds_give_different_products(kind: str) -> None:
    frames = [Surface(kind, seed, 96).part(0).frame.astype(float) for seed in range(4)]
    assert all(np.abs(a - b).mean() > 5 for i, a in enumerate(frames) for b in frames[:i])


@pytest.mark.parametrize("shift", [(1, 0), (0, 1), (1, 1), (-1, -1), (0, 0)])
def test_the_next_seed_is_not_this_one_shifted(shift: tuple[int, int]) -> None:
    places = np.arange(64)
    one, other = noise(7, 30, places, places), noise(8, 30, places + shift[0], places + shift[1])
    assert abs(np.corrcoef(one.ravel(), other.ravel())[0, 1]) < 0.1


def test_the_web_never_repeats() -> None:
    surface = Surface("woven", 5, 64)
    pieces = [web(surface, 64 * i, 64) for i in [*range(12), 10_000, 1_000_000]]
    flat = np.stack([p.ravel() - p.mean() for p in pieces])
    flat /= np.linalg.norm(flat, axis=1, keepdims=True)
    likeness = flat @ flat.T - np.eye(len(flat))
    assert likeness.max() < 0.9  # the weave is alike, its threads are not
    assert all(np.abs(a - b).mean() > 0.02 for i, a in enumerate(pieces) for b in pieces[:i])


@few
@given(seed=st.integers(0, 1000), y0=st.integers(0, 10**8), step=st.integers(1, 63))
def test_windows_of_the_web_agree_where_they_overlap(seed: int, y0: int, step: int) -> None:
    surface = Surface("woven", seed, 64)
    np.testing.assert_allclose(web(surface, y0, 64)[step:], web(surface, y0 + step, 64)[:-step], atol=2e-3)


def test_parts_of_the_web_follow_each_other_without_a_seam() -> None:
    surface = Surface("woven", 2, 64)
    both = web(surface, 5 * 64, 128)
    for index, half in ((5, both[:64]), (6, both[64:])):
        np.testing.assert_allclose(surface._product.piece(index).reflectance(None)[0], half, atol=2e-3)


@pytest.mark.parametrize(("kind", "defect"), EVERY)
def test_the_mask_is_where_the_noise_free_frames_differ(kind: str, defect: str) -> None:
    for seed in range(3):
        surface = Surface(kind, seed, 128, turned=seed == 1)
        good, bad = surface._clean(seed, None)[0], surface._clean(seed, defect)[0]
        expected = (np.abs(good - bad) > 4).any(axis=0)
        np.testing.assert_array_equal(surface.part(seed, defect).mask, np.where(expected, 255, 0))


@pytest.mark.parametrize(("kind", "defect"), EVERY)
def test_a_defect_changes_the_frame_inside_its_mask_alone(kind: str, defect: str) -> None:
    for seed in range(3):
        surface = Surface(kind, seed, 128, turned=True)
        good, bad = surface.part(40 + seed), surface.part(40 + seed, defect)
        difference = np.abs(good.frame.astype(int) - bad.frame.astype(int)).max(axis=2)
        assert bad.label == defect
        assert difference[bad.mask == 255].mean() >= 12
        assert difference[bad.mask == 0].max() <= 6  # 4 of the rule, and rounding and noise that follow the signal


@pytest.mark.parametrize(("kind", "defect"), EVERY)
def test_defects_differ_in_size_and_place_within_bounds(kind: str, defect: str) -> None:
    surface = Surface(kind, 8)
    masks = [surface.part(index, defect).mask > 0 for index in range(8)]
    areas = [int(mask.sum()) for mask in masks]
    assert min(areas) >= 60 and max(areas) <= 4000
    assert max(areas) > 1.5 * min(areas)
    centres = np.array([np.argwhere(mask).mean(axis=0) for mask in masks])
    assert np.ptp(centres, axis=0).min() > 40


@pytest.mark.parametrize(("kind", "defect"), EVERY)
def test_no_draw_is_too_small_or_too_faint(kind: str, defect: str) -> None:
    for seed in range(30):  # small frames, where one draw in ten would be
        surface = Surface(kind, seed, 64)
        part, good = surface.part(seed, defect), surface._clean(seed, None)[0]
        changed = part.mask > 0
        assert changed.sum() >= 60 * 64 / 256
        assert np.abs(surface._clean(seed, defect)[0] - good)[:, changed].mean() >= 12


@pytest.mark.parametrize(("rows", "levels", "visible"), [(1, 20, True), (1, 10, False), (0.1, 20, False),
                                                         (20, 20, False)])
def test_a_faint_a_tiny_or_a_vast_change_is_no_defect(rows: float, levels: int, visible: bool) -> None:
    good, bad = np.full((2, 1, 256, 256), 100, np.float32)
    bad.reshape(-1)[: int(rows * 256)] += levels
    assert is_visible(good, bad, changed_pixels(good, bad)) is visible


@few
@given(seed=st.integers(0, 10**6), index=st.integers(0, 10**6), which=st.integers(0, 3))
def test_defects_of_turned_parts_lie_on_the_part(seed: int, index: int, which: int) -> None:
    surface = Surface("printed", seed, 96, turned=True)
    mask, plate = surface.part(index, surface.defects[which]).mask > 0, plate_of(surface, index).plate
    assert mask.any() and not (mask & (plate < 0.02)).any()


@few
@given(seed=st.integers(0, 10**6), index=st.integers(0, 10**6))
def test_a_turned_part_lies_whole_in_the_frame(seed: int, index: int) -> None:
    plate = plate_of(Surface("printed", seed, 128, turned=True), index).plate
    assert plate.max() == pytest.approx(1)
    assert max(plate[0].max(), plate[-1].max(), plate[:, 0].max(), plate[:, -1].max()) == 0


def test_turned_parts_move_and_others_sit_still() -> None:
    def centres(turned: bool) -> np.ndarray:
        surface = Surface("printed", 1, 128, turned)
        return np.array([np.argwhere(plate_of(surface, i).plate > 0.5).mean(axis=0) for i in range(12)])

    assert np.ptp(centres(False), axis=0).max() < 1.5
    moved = np.ptp(centres(True), axis=0)
    assert moved.min() > 8 and moved.max() < 0.17 * 128


@few
@given(seed=st.integers(0, 10**6), index=st.integers(0, 10**6))
def test_a_turned_part_knows_its_own_axes(seed: int, index: int) -> None:
    surface = Surface("printed", seed, 128, turned=True)
    piece, (half_width, half_height) = plate_of(surface, index), surface._product.half
    inside = (np.abs(piece.x) < half_width) & (np.abs(piece.y) < half_height)
    assert (inside != (piece.plate > 0.5)).mean() < 0.01  # rounded corners


def test_a_defect_turns_with_its_part() -> None:
    flaws = {}
    for turned in (False, True):
        surface = Surface("printed", 6, 128, turned)
        piece, mask = plate_of(surface, 3), surface.part(3, "hole").mask > 0
        flaws[turned] = np.array([piece.x[mask].mean(), piece.y[mask].mean()]) / surface._product.half
    # The same hole at the same place of the plate, or nearly: a larger plate leaves it more room. The frames show it
    # elsewhere.
    np.testing.assert_allclose(flaws[False], flaws[True], atol=0.15)


def test_a_missing_thread_is_thin_and_straight_along_warp_or_weft() -> None:
    surface = Surface("woven", 4)
    spans = [np.ptp(np.argwhere(surface.part(i, "missing_thread").mask), axis=0) + 1 for i in range(10)]
    assert all(min(span) <= 16 and max(span) >= 30 for span in spans)
    assert {int(np.argmax(span)) for span in spans} == {0, 1}


@pytest.mark.parametrize("kind", KINDS)
def test_light_drifts_slowly_within_ten_per_cent(kind: str) -> None:
    surface = Surface(kind, 3, 64)
    level = np.array([surface._light(i).mean() for i in range(600)])
    middle = (level.max() + level.min()) / 2
    assert 0.05 < (level.max() - middle) / middle < 0.11
    assert np.abs(np.diff(level)).max() / middle < 0.01
    means = [surface.part(i).frame.mean() for i in (int(level.argmax()), int(level.argmin()))]
    assert means[0] > 1.08 * means[1]


@pytest.mark.parametrize(("arguments", "told"), [
    (("knitted", 0), "'knitted'.*woven or printed"),
    (("woven", 0, 63), "63 px.*at least 64"),
    (("woven", -1), "seed"),
])
def test_a_surface_that_cannot_be_is_refused(arguments: tuple, told: str) -> None:
    with pytest.raises(InputError, match=told):
        Surface(*arguments)


@pytest.mark.parametrize(("kind", "index", "defect", "told"), [
    ("woven", 0, "missing_print", "missing_thread"),
    ("printed", 0, "missing_thread", "missing_print"),
    ("woven", -1, None, "0 or more"),
])
def test_a_part_that_cannot_be_is_refused(kind: str, index: int, defect: str | None, told: str) -> None:
    with pytest.raises(InputError, match=told):
        Surface(kind, 0, 64).part(index, defect)


def test_render_folder_lays_out_a_data_set_that_reads_back(tmp_path: Path) -> None:
    surface = Surface("printed", 1, 64, turned=True)
    told: list[tuple[int, int]] = []
    render_folder(tmp_path / "set", surface, train_good=3, test_good=2, defective=6, progress=lambda *n: told.append(n))
    files = {str(p.relative_to(tmp_path / "set")) for p in list_images(tmp_path / "set")}
    defective = [f"{name}/{i:05d}" for name, count in zip(surface.defects, (2, 2, 1, 1), strict=True)
                 for i in range(count)]
    assert files == (
        {"train/good/00000.png", "train/good/00001.png", "train/good/00002.png", "test/good/00000.png",
         "test/good/00001.png"}
        | {f"test/{stem}.png" for stem in defective} | {f"ground_truth/{stem}_mask.png" for stem in defective}
    )
    for file, index, defect in (("train/good/00002", 2, None), ("test/good/00001", 4, None),
                                ("test/stain/00001", 10, "stain")):
        np.testing.assert_array_equal(read_image(tmp_path / "set" / f"{file}.png"), surface.part(index, defect).frame)
    mask = read_image(tmp_path / "set/ground_truth/stain/00001_mask.png")
    np.testing.assert_array_equal(mask[..., 0], surface.part(10, "stain").mask)
    assert told == [(i + 1, 11) for i in range(11)]


def test_train_and_test_share_no_part(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []
    original = Surface.part

    def part(self: Surface, index: int, defect: str | None = None) -> RenderedPart:
        asked.append(index)
        return original(self, index, defect)

    monkeypatch.setattr(Surface, "part", part)
    render_folder(tmp_path / "set", Surface("woven", 1, 64), train_good=4, test_good=3, defective=5)
    assert len(asked) == len(set(asked)) == 12


@pytest.mark.parametrize(("parts", "rate", "defective"), [
    (20, 0.15, 3), (7, 0.5, 4), (5, 0.0, 0), (4, 1.0, 4), (0, 0.5, 0)])
def test_render_sequence_has_exactly_the_defects_asked_for(tmp_path: Path, parts: int, rate: float,
                                                           defective: int) -> None:
    out, surface = tmp_path / "line", Surface("woven", 1, 64)
    rows = render_sequence(out, surface, parts=parts, defect_rate=rate, first_index=500)
    with (out / "parts.csv").open(newline="") as file:
        assert list(csv.DictReader(file)) == [{key: str(value) for key, value in row.items()} for row in rows]
    assert [row["part"] for row in rows] == list(range(parts))
    assert [row["file"] for row in rows] == [f"frames/part-{i:06d}.png" for i in range(parts)]
    bad = [row for row in rows if row["label"] != "good"]
    assert len(bad) == defective and {row["label"] for row in bad} <= set(surface.defects)
    assert sorted(p.name for p in (out / "masks").iterdir()) == [Path(str(row["file"])).name for row in bad]
    for row in rows:
        part = surface.part(500 + int(row["part"]), None if row["label"] == "good" else str(row["label"]))
        np.testing.assert_array_equal(read_image(out / str(row["file"])), part.frame)
        assert row["defect_px"] == (part.mask == 255).sum()


def test_which_parts_of_a_sequence_are_defective_is_drawn_from_the_seed(tmp_path: Path) -> None:
    def labels(name: str, seed: int) -> list[str]:
        rows = render_sequence(tmp_path / name, Surface("woven", seed, 64), parts=16, defect_rate=0.5)
        return [str(row["label"]) for row in rows]

    first = labels("a", 1)
    assert first == labels("b", 1) and first != labels("c", 2)


def render(out: Path, what: str, progress: Callable[[int, int], None] | None = None) -> None:
    surface = Surface("woven", 1, 64)
    if what == "folder":
        render_folder(out, surface, train_good=2, test_good=1, defective=1, progress=progress)
    else:
        render_sequence(out, surface, parts=4, defect_rate=0.5, progress=progress)


@pytest.mark.parametrize("what", ["folder", "sequence"])
def test_a_folder_that_is_not_empty_is_refused_and_left_alone(tmp_path: Path, what: str) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "mine.txt").write_text("mine")
    with pytest.raises(InputError, match=r"not empty.*expected a new or an empty folder.*another folder"):
        render(out, what)
    assert [p.name for p in tmp_path.rglob("*")] == ["out", "mine.txt"]


@pytest.mark.parametrize("what", ["folder", "sequence"])
def test_an_empty_folder_and_missing_parents_are_welcome(tmp_path: Path, what: str) -> None:
    (tmp_path / "empty").mkdir()
    render(tmp_path / "empty", what)
    render(tmp_path / "new" / "deeper", what)
    assert list_images(tmp_path / "empty") and list_images(tmp_path / "new" / "deeper")


@pytest.mark.parametrize("stop", [KeyboardInterrupt, RuntimeError])
@pytest.mark.parametrize("what", ["folder", "sequence"])
def test_an_interrupted_rendering_leaves_nothing(tmp_path: Path, what: str, stop: type[BaseException]) -> None:
    def progress(done: int, total: int) -> None:
        if done == 3:
            raise stop

    with pytest.raises(stop):
        render(tmp_path / "out", what, progress)
    assert list(tmp_path.iterdir()) == []


def test_a_place_that_cannot_be_written_is_told_with_a_way_out(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=r"cannot write.*name another folder"):
        render(tmp_path / "file" / "out", "folder")


@pytest.mark.parametrize("wrong", [
    {"parts": -1, "defect_rate": 0.1},
    {"parts": 2, "defect_rate": 1.5},
    {"parts": 2, "defect_rate": float("nan")},
    {"parts": 2, "defect_rate": 0.1, "first_index": -1},
])
def test_a_sequence_that_cannot_be_is_refused(tmp_path: Path, wrong: dict) -> None:
    with pytest.raises(InputError):
        render_sequence(tmp_path / "out", Surface("woven", 1, 64), **wrong)
    assert list(tmp_path.iterdir()) == []


def test_a_negative_count_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="test_good"):
        render_folder(tmp_path / "out", Surface("woven", 1, 64), train_good=1, test_good=-1, defective=0)
