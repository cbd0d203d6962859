"""Camera `video`: devices, streams and pipelines, which run free, come and go."""

from __future__ import annotations

import http.server
import os
import threading
import time

import cv2
import numpy as np
import pytest

from edge.base.errors import CameraError
from edge.cameras.kinds import make_camera
from edge.cameras.live import LiveCamera
from edge.cameras.video import opencv as video
from edge.cameras.video.devices import find_devices
from edge.cameras.video.section import VideoSection
from edge.part.verdict import Cause
from tests.rig import wait_for

SIZE = (48, 64)
HAS_GSTREAMER = cv2.videoio_registry.hasBackend(cv2.CAP_GSTREAMER)


def opened(folder, source: str, **keys):
    camera = make_camera([VideoSection(kind="video", source=source, **keys)], folder)
    camera.open()
    return camera


def test_missing_devices_and_streams_do_not_start(tmp_path):
    with pytest.raises(CameraError, match="no camera at /dev/video77"):
        opened(tmp_path, "/dev/video77")
    with pytest.raises(CameraError) as told:
        opened(tmp_path, "rtsp://user:secret@127.0.0.1:1/x")
    assert "cannot open rtsp://127.0.0.1:1/x" in str(told.value) and "secret" not in str(told.value)


def test_without_gstreamer_the_error_says_how_to_get_it(tmp_path, monkeypatch):
    monkeypatch.setattr(cv2.videoio_registry, "hasBackend", lambda number: number != cv2.CAP_GSTREAMER)
    for keys in ({"source": "videotestsrc ! appsink"}, {"source": "http://127.0.0.1:1/x", "backend": "gstreamer"}):
        with pytest.raises(CameraError, match=r"without GSTREAMER.*apt-get install python3-opencv"):
            opened(tmp_path, **keys)


@pytest.mark.skipif(not HAS_GSTREAMER, reason="this OpenCV has no GStreamer; Debian's python3-opencv has")
def test_a_gstreamer_pipeline_runs_free(tmp_path):
    source = ("videotestsrc is-live=true ! video/x-raw,width=320,height=240,framerate=30/1,format=GRAY8 ! "
              "appsink drop=true max-buffers=1")
    camera = opened(tmp_path, source, window_ms=5000)
    camera.expose(1, 1, None, time.monotonic())
    assert camera.next(10.0).image.shape == (240, 320, 1)
    camera.close()


def test_video_devices_are_found_with_their_names(tmp_path):
    (tmp_path / "dev").mkdir()
    usb = tmp_path / "sys/devices/usb1/1-2"
    (usb / "1-2:1.0").mkdir(parents=True)
    (usb / "manufacturer").write_text("Acme\n")
    for number, index in ((10, 0), (2, 1)):
        node = tmp_path / f"sys/class/video4linux/video{number}"
        node.mkdir(parents=True)
        (node / "name").write_text("Acme Eye\n")
        (node / "index").write_text(f"{index}\n")
        (node / "device").symlink_to(usb / "1-2:1.0")
        (tmp_path / f"dev/video{number}").touch()
    second, first = find_devices(tmp_path)
    assert (first.kind, first.key) == ("video", "/dev/video10")
    assert (first.vendor, first.model, first.address) == ("Acme", "Acme Eye", "1-2:1.0")
    assert first.text == "" and second.key == "/dev/video2" and "metadata" in second.text
    assert find_devices(tmp_path / "nowhere") == []


class Stream(http.server.ThreadingHTTPServer):
    """Motion JPEG over HTTP, 50 frames a second, until it is killed."""

    daemon_threads = True

    def __init__(self, port: int = 0) -> None:
        self.alive = True
        super().__init__(("127.0.0.1", port), Connection)
        threading.Thread(target=self.serve_forever, args=(0.02,), daemon=True).start()

    def kill(self) -> None:
        self.alive = False
        self.shutdown()
        self.server_close()


class Connection(http.server.BaseHTTPRequestHandler):
    server: Stream

    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "multipart/x-mixed-replace; boundary=next")
        self.end_headers()
        data = cv2.imencode(".jpg", np.full((*SIZE, 3), 90, np.uint8))[1].tobytes()
        try:
            while self.server.alive:
                head = b"--next\r\nContent-Type: image/jpeg\r\nContent-Length: %d\r\n\r\n" % len(data)
                self.wfile.write(head + data + b"\r\n")
                time.sleep(0.02)
        except OSError:
            self.close_connection = True

    def log_message(self, *_: object) -> None:
        """Says nothing."""


def next_of(camera, trigger: int):
    """The frame of a trigger of now, and what was raised on the way to it."""
    camera.expose(trigger, trigger, None, time.monotonic())
    raised = []
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        try:
            frame = camera.next(0.1)
        except CameraError as error:
            raised.append(str(error))
            continue
        if frame is not None and frame.trigger == trigger:
            return frame, raised
    raise AssertionError("waited in vain")


def test_a_stream_runs_free_and_reconnects_after_a_loss(tmp_path):
    stream = Stream()
    camera = opened(tmp_path, f"http://127.0.0.1:{stream.server_port}/x.mjpg", window_ms=10_000)
    wait_for(lambda: camera.counters()["unasked"] > 10)  # it reads on, though nobody asks
    frame, _ = next_of(camera, 1)
    assert frame.image.shape == (*SIZE, 3) and frame.frame_id > 10 and frame.cause is None
    stream.kill()
    wait_for(lambda: camera.counters()["disconnects"] == 1)
    frame, raised = next_of(camera, 2)
    assert frame.image is None and frame.cause is Cause.CAMERA and "is gone" in raised[0]
    stream = Stream(stream.server_port)
    wait_for(lambda: camera.counters()["reconnects"] == 1)
    frame, _ = next_of(camera, 3)
    assert frame.image is not None and frame.connection == 1 and camera.counters()["disconnects"] == 1
    camera.close()
    stream.kill()


class FakeCapture:
    """In place of V4L2, which needs a device: some frames with a time, then no more, as after its plug was pulled."""

    def __init__(self) -> None:
        self.reads, self.released = 0, False

    def read(self):
        self.reads += 1
        return (True, np.zeros(SIZE, np.uint8)) if self.reads <= 4 else (False, None)

    def get(self, number):
        assert number == cv2.CAP_PROP_POS_MSEC
        return 1000.0 * self.reads

    def getBackendName(self):
        return "V4L2"

    def release(self):
        self.released = True


def test_a_lost_device_is_not_read_in_a_busy_loop(tmp_path, monkeypatch):
    captures: list[FakeCapture] = []

    def once(section, source):
        if captures:
            raise CameraError("no such device")
        captures.append(FakeCapture())
        return captures[0]

    monkeypatch.setattr(video, "open_capture", once)
    driver = video.VideoDriver(VideoSection(kind="video", source=os.devnull))
    camera = LiveCamera(driver, "off", 0.03)
    camera.open()
    wait_for(lambda: camera.counters()["disconnects"] == 1)
    time.sleep(0.3)
    camera.close()
    assert captures[0].reads == 5 and captures[0].released and camera.counters()["frames"] == 3


def test_only_v4l2_has_device_times(monkeypatch):
    capture = FakeCapture()
    monkeypatch.setattr(video, "open_capture", lambda section, source: capture)
    driver = video.VideoDriver(VideoSection(kind="video", source=os.devnull))
    driver.connect()
    assert driver.grab(0.1).device_time == 2.0
    monkeypatch.setattr(capture, "getBackendName", lambda: "FFMPEG", raising=False)
    assert driver.grab(0.1).device_time is None
    driver.disconnect()
