"""GenICam cameras against Aravis' fake in this process: features, pixel formats, memory. Chunk data by a stand-in."""

from __future__ import annotations

import gc
import sys
import time

import cv2
import numpy as np
import pytest

from edge.base.errors import CameraError
from edge.cameras.genicam.aravis import find_device
from edge.cameras.genicam.chunks import ABSENT, ChunkReader, Chunks, Exposures, set_chunks
from edge.cameras.genicam.driver import GenicamDriver
from edge.cameras.genicam.pixels import FORMATS, PixelFormat, to_frame
from edge.cameras.genicam.section import GenicamSection
from edge.cameras.genicam.setup import packet_delay_ns
from tests.edge.cameras.gige import need_aravis


def form(name: str) -> PixelFormat:
    return next(form for form in FORMATS.values() if form.name == name)


# Pixel formats

def test_codes_are_those_of_aravis():
    need_aravis()
    from gi.repository import Aravis

    checked = 0
    for code, one in FORMATS.items():
        kind = one.kind.replace("Bayer", "BAYER_").upper() if one.kind.startswith("Bayer") else one.kind.upper()
        end = {"Packed": "_PACKED", "p": "P", "": "_PACKED" if one.channels == 3 else ""}[one.packing]
        constant = getattr(Aravis, f"PIXEL_FORMAT_{kind}_{one.bits}{end}", None)
        checked += constant == code
        assert constant in (None, code), one.name
    assert checked == len(FORMATS) - 2  # Aravis has no names for Mono10p and Mono12p


def bits(values, width) -> np.ndarray:
    """Values as a stream of bits, lowest first: bytes."""
    stream = [value >> i & 1 for value in values for i in range(width)]
    return np.packbits(np.array(stream, np.uint8), bitorder="little")


def gige_packed(values, width) -> np.ndarray:
    """Two values in three bytes, as in GigE Vision: high, both low, high."""
    low = width - 8
    return np.array([byte for a, b in zip(values[::2], values[1::2], strict=True)
                     for byte in (a >> low, (a & ((1 << low) - 1)) | (b & ((1 << low) - 1)) << 4, b >> low)], np.uint8)


@pytest.mark.parametrize("name", [one.name for one in FORMATS.values() if one.kind == "Mono"])
@pytest.mark.parametrize("padding", [0, 3])
def test_grey_keeps_its_high_bits_and_stays_grey(name, padding):
    one, height, width = form(name), 6, 8
    values = np.random.default_rng(1).integers(0, 1 << one.bits, (height, width))

    def encode(row):
        if one.packing:
            return (bits if one.packing == "p" else gige_packed)([int(value) for value in row], one.bits)
        return row.astype("u1" if one.bits == 8 else "<u2").view(np.uint8)

    if padding:
        data = np.concatenate([np.append(encode(row), np.full(padding, 255, np.uint8)) for row in values])
    else:
        data = encode(values.reshape(-1))
    frame = to_frame(np.append(data, np.zeros(7, np.uint8)), one, width, height, padding)
    assert frame.shape == (height, width, 1) and frame.dtype == np.uint8 and frame.flags.c_contiguous
    assert (frame[..., 0] == values >> (one.bits - 8)).all()


def test_odd_counts_of_packed_pixels_are_unpacked():
    values = [0xABC, 0x123, 0x456]
    assert to_frame(bits(values, 12), form("Mono12p"), 3, 1).ravel().tolist() == [0xAB, 0x12, 0x45]
    packed = gige_packed([*values, 0], 12)[:5]
    assert to_frame(packed, form("Mono12Packed"), 3, 1).ravel().tolist() == [0xAB, 0x12, 0x45]
    assert to_frame(bits(values, 10), form("Mono10p"), 3, 1).ravel().tolist() == [value % 1024 >> 2 for value in values]


@pytest.mark.parametrize("one", [one for one in FORMATS.values() if one.kind.startswith("Bayer")],
                         ids=lambda one: one.name)
def test_a_bayer_image_becomes_the_colours_that_its_sensor_saw(one):
    colours = {"R": 200, "G": 120, "B": 40}
    rows = {"RG": ("RG", "GB"), "GR": ("GR", "BG"), "GB": ("GB", "RG"), "BG": ("BG", "GR")}[one.kind[5:]]
    high = np.array([[colours[rows[y % 2][x % 2]] for x in range(16)] for y in range(16)])
    values = [int(value) << (one.bits - 8) for value in high.reshape(-1)]
    if one.packing:
        data = (bits if one.packing == "p" else gige_packed)(values, one.bits)
    else:
        data = np.array(values).astype("u1" if one.bits == 8 else "<u2").view(np.uint8)
    frame = to_frame(data, one, 16, 16)
    assert frame.shape == (16, 16, 3) and (frame[4:-4, 4:-4] == [200, 120, 40]).all()


def test_colour_comes_in_rgb_order():
    pixels = np.arange(24, dtype=np.uint8).reshape(2, 4, 3)
    assert (to_frame(pixels.reshape(-1), form("RGB8"), 4, 2) == pixels).all()
    assert (to_frame(cv2.cvtColor(pixels, cv2.COLOR_RGB2BGR).reshape(-1), form("BGR8"), 4, 2) == pixels).all()


def test_bytes_in_frame_format_are_not_copied_and_too_few_are_refused():
    data = np.zeros(20, np.uint8)
    assert np.shares_memory(to_frame(data, form("Mono8"), 4, 5), data)
    with pytest.raises(ValueError, match="20 bytes, 24 needed for 4x6 px of Mono8"):
        to_frame(data, form("Mono8"), 4, 6)


# The fake camera of Aravis, without a network

@pytest.fixture
def fake(monkeypatch):
    """Connect to it: fake(**keys of the line file) returns the driver."""
    need_aravis()
    from gi.repository import Aravis

    Aravis.enable_interface("Fake")
    drivers = []
    monkeypatch.setattr("edge.cameras.genicam.driver.find_device",  # which takes a second
                        lambda serial: serial if serial == "Fake_1" else find_device(serial))

    def make(**keys) -> GenicamDriver:
        keys = {"serial": "Fake_1", "trigger": "off", **keys}
        drivers.append(GenicamDriver(GenicamSection(kind="genicam", **keys)))
        drivers[-1].connect()
        return drivers[-1]

    yield make
    for driver in drivers:
        driver.disconnect()
    Aravis.disable_interface("Fake")


def grab(driver):
    deadline = time.monotonic() + 20
    while (grabbed := driver.grab(0.5)) is None:
        assert time.monotonic() < deadline, "no frame came"
    return grabbed


def test_it_is_found_and_opened_by_serial_number_or_id_or_as_the_only_one(fake):
    fake()
    found = {(one.kind, one.key, one.vendor, one.model) for one in GenicamSection.discover()}
    assert ("genicam", "1", "Aravis", "Fake") in found
    fake(serial="1")
    message = r"camera 7 is not there; got .*1 \(Aravis Fake at 0.0.0.0\).*; expected one of them as `serial`"
    with pytest.raises(CameraError, match=message):
        fake(serial="7")


def test_frames_have_ids_and_times(fake):
    driver = fake(features={"AcquisitionFrameRate": 100})
    first, second = grab(driver), grab(driver)
    assert second.frame_id == first.frame_id + 1 and second.device_time > first.device_time
    assert first.image.shape == (512, 512, 1) and first.image.flags.c_contiguous
    assert first.encoder is None and first.exposure_us is None


@pytest.mark.parametrize("keys, message", [
    ({"exposure_us": 3}, r"`exposure_us` \(ExposureTime\) does not accept .*; got 3.0; expected 10 to 10000000"),
    ({"gain": 40}, r"`gain` \(Gain\) does not accept this value; got 40.0; expected 0 to 10"),
    ({"gain": 4.5}, "got 4.5; expected a whole number, 0 to 10"),
    ({"frame_rate": 1e5}, r"`frame_rate` \(AcquisitionFrameRate\) .*; got 100000.0; expected 0.1 to 1000"),
    ({"pixel_format": "Mono12"},
     "`pixel_format` cannot be used; got Mono12; expected one of BayerBG8, .*Mono8, RGB8, Mono16"),
    ({"roi": [0, 0, 3000, 16]}, "`roi` has a wrong width; got 3000; expected 1 to 2048"),
    ({"roi": [2000, 0, 100, 16]},
     "`roi` has a wrong x; got 2000, with a width of 100 px; expected 0 to 1948, on a sensor of 2048 px"),
    ({"roi": [0, -1, 100, 16]}, "`roi` has a wrong y; got -1"),
    ({"trigger": "hardware"},
     r"`trigger_source` \(TriggerSource\) does not accept this value; got 'Line1'; expected one of Line0, Software"),
    ({"features": {"ExposureTme": 1}}, "has no feature ExposureTme; expected perhaps ExposureTimeAbs"),
    ({"features": {"TestBoolean": 1}}, "got 1; expected true or false"),
    ({"features": {"Width": "a"}}, "got 'a'; expected a number, 1 to 2048"),
    ({"features": {"GainAuto": "Sometimes"}}, "got 'Sometimes'; expected one of Off, Once, Continuous"),
    ({"features": {"TestStringReg": 5}}, "got 5; expected a text"),
    ({"features": {"AcquisitionStop": 1}}, "got 1; expected true, which executes it"),
    ({"features": {"SensorWidth": 5}}, "feature SensorWidth can only be read"),
    ({"bandwidth_mb_s": 10}, "cannot limit its bandwidth"),
])
def test_a_value_that_the_camera_rejects_is_an_error_that_names_the_valid_ones(fake, keys, message):
    with pytest.raises(CameraError, match=message):
        fake(**keys)
    fake()  # nothing was left open


def test_features_are_set(fake):
    from gi.repository import Aravis

    driver = fake(trigger="hardware", trigger_source="Line0", exposure_us=500, gain=3, pixel_format="RGB8",
                  roi=[8, 4, 320, 240], frame_rate=50,
                  features={"TestBoolean": True, "BinningVertical": 2, "TestStringReg": "felt"})
    device = driver._connection._device
    assert (device.get_float_feature_value("ExposureTimeAbs"), device.get_integer_feature_value("GainRaw")) == (500, 3)
    assert device.get_string_feature_value("GainAuto") == "Off"
    assert device.get_string_feature_value("TestStringReg") == "felt"
    assert device.get_boolean_feature_value("TestBoolean")
    assert device.get_float_feature_value("AcquisitionFrameRate") == 50
    region = [device.get_integer_feature_value(name) for name in ("OffsetX", "OffsetY", "Width", "Height")]
    assert region == [8, 4, 320, 240]
    modes = {}
    for selector in ("AcquisitionStart", "FrameStart"):
        device.set_string_feature_value("TriggerSelector", selector)
        modes[selector] = device.get_string_feature_value("TriggerMode")
    assert modes == {"AcquisitionStart": "Off", "FrameStart": "On"}
    assert device.get_string_feature_value("TriggerSource") == "Line0"
    assert isinstance(device, Aravis.FakeDevice)


def test_the_line_triggers_the_camera_or_nothing_does(fake):
    for trigger, mode in (("software", "On"), ("off", "Off")):
        driver = fake(trigger=trigger)
        assert driver._connection._device.get_string_feature_value("TriggerMode") == mode
        driver.disconnect()
    driver = fake(trigger="software")
    driver.trigger()
    assert driver._connection._device.get_string_feature_value("TriggerSource") == "Software"


@pytest.mark.parametrize("name, channels", [("Mono8", 1), ("Mono16", 1), ("RGB8", 3), ("BayerRG8", 3), ("BayerGB8", 3)])
def test_frames_of_the_cameras_formats(fake, name, channels):
    image = grab(fake(pixel_format=name, roi=[0, 0, 64, 48], frame_rate=100)).image
    assert image.shape == (48, 64, channels) and image.dtype == np.uint8 and image.flags.c_contiguous
    assert image.std() > 1


def test_a_frame_is_a_view_of_the_streams_memory_which_goes_back_when_all_views_of_it_are_gone(fake):
    driver = fake(frame_rate=200, roi=[0, 0, 64, 64])
    pool = driver._connection._pool
    arrays = [array for _, array in pool._arrays.values()]
    image = grab(driver).image
    owner = next(array for array in arrays if np.shares_memory(array, image))
    before = image.copy()
    part = image[8:16, 8:16]
    del image
    gc.collect()
    for _ in range(3 * len(arrays)):
        assert not np.shares_memory(grab(driver).image, owner)
    assert (part == before[8:16, 8:16]).all()
    del part
    gc.collect()
    assert any(np.shares_memory(grab(driver).image, owner) for _ in range(3 * len(arrays)))


def test_frames_are_copied_when_too_few_buffers_are_left_and_none_is_lost(fake):
    driver = fake(frame_rate=200, roi=[0, 0, 64, 64])
    arrays = [array for _, array in driver._connection._pool._arrays.values()]
    held = [grab(driver) for _ in range(2 * len(arrays))]
    views = sum(any(np.shares_memory(array, one.image) for array in arrays) for one in held)
    assert len(arrays) // 2 <= views <= len(arrays) - 3
    assert [one.frame_id for one in held] == list(range(held[0].frame_id, held[0].frame_id + len(held)))


def test_frames_outlive_their_camera_and_it_connects_again(fake):
    driver = fake(frame_rate=200, roi=[0, 0, 64, 64])
    image = grab(driver).image
    before = image.copy()
    driver.disconnect()
    driver.disconnect()
    assert (image == before).all() and driver.statistics() == {}
    del image
    gc.collect()  # must not go back to a stream that is gone
    with pytest.raises(CameraError, match="not connected"):
        driver.grab(0.01)
    with pytest.raises(CameraError, match="not connected"):
        driver.trigger()
    driver.connect()
    assert grab(driver).image is not None and driver.statistics()["failures"] == 0


def test_a_disconnected_camera_leaves_no_memory_behind(fake):
    driver = fake(roi=[0, 0, 64, 64], frame_rate=200)
    pool = driver._connection._pool
    grab(driver)
    driver.disconnect()
    gc.collect()
    assert sys.getrefcount(pool) == 2


def test_without_aravis_the_error_says_how_to_install_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "gi", None)
    with pytest.raises(CameraError, match=r"apt-get install gir1.2-aravis-0.8 .*pip install 'lineside\[genicam\]'"):
        GenicamDriver(GenicamSection(kind="genicam")).connect()


# What the fake has not: chunks (stand-ins), packet delays

class AbsentError(Exception):
    """As GLib.Error is for a chunk that is not there."""


class Parser:
    """A chunk parser: the chunks of a buffer are a dictionary."""

    def __init__(self):
        self.asked = []

    def get_integer_value(self, buffer, name):
        self.asked.append(name)
        if name not in buffer.chunks:
            raise AbsentError(name)
        return buffer.chunks[name]

    get_float_value = get_integer_value


class ChunkBuffer:
    def __init__(self, **chunks):
        self.chunks = chunks

    def has_chunks(self):
        return bool(self.chunks)


def test_chunks_are_read_and_missing_ones_are_given_up_on():
    parser = Parser()
    reader = ChunkReader(parser, AbsentError)
    whole = ChunkBuffer(ChunkFramecounter=7, ChunkTimestamp=5, ChunkExposureTime=99.5, ChunkEncoderValue=0xFFFFFFFE)
    assert reader.read(whole) == reader.read(whole) == Chunks(7, 5, 99.5, -2)
    assert parser.asked.count("ChunkFramecounter") == 2
    for _ in range(20):
        reader.read(whole)
    assert parser.asked.count("ChunkFrameID") == ABSENT and parser.asked.count("ChunkFramecounter") == 22
    assert reader.read(ChunkBuffer()) == Chunks()


class ChunkFeatures:
    """Features of a camera with chunks."""

    def __init__(self, *entries):
        self.chosen, self.done = entries, []

    def has(self, name):
        return bool(self.chosen)

    def entries(self, name):
        return dict.fromkeys(self.chosen, 0)

    def set(self, name, value, key=""):
        self.done.append((name, value))


def test_the_chunks_that_a_camera_has_are_turned_on():
    features = ChunkFeatures("Image", "FrameID", "Gain", "EncoderValue")
    assert set_chunks(features, True)
    assert features.done == [("ChunkModeActive", True), ("ChunkSelector", "FrameID"), ("ChunkEnable", True),
                             ("ChunkSelector", "EncoderValue"), ("ChunkEnable", True)]
    features.done.clear()
    assert not set_chunks(features, False) and features.done == [("ChunkModeActive", False)]
    assert not set_chunks(ChunkFeatures(), True)


def test_exposures_that_the_camera_could_not_send_are_a_gap_in_the_ids():
    exposures = Exposures(1, 65535)
    sent = ((65534, 10), (65535, 11), (1, 14), (2, None), (3, 16))
    assert [exposures.id_of(*one) for one in sent] == [65534, 65535, 3, 4, 5]


def test_a_chunk_count_that_wraps_is_no_gap():
    exposures = Exposures(1, 65535)
    assert [exposures.id_of(*one) for one in ((7, 65535), (8, 0), (9, 1))] == [7, 8, 9]


def test_overtaken_frames_keep_their_own_ids():
    exposures = Exposures(1, 65535)
    assert [exposures.id_of(*one) for one in ((10, 20), (12, 23), (11, 21), (13, 24))] == [10, 13, 11, 14]


def test_packet_delays():
    assert packet_delay_ns(1000, 50, 1000) == 20_000 - 8_000  # a packet each 20 us, of which 8 us are its own
    assert packet_delay_ns(1000, 500, 1000) == 0
