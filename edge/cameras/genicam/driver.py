"""Camera `genicam`: the driver for GigE Vision and USB3 Vision cameras, on top of Aravis."""

from __future__ import annotations

import threading
import time
from contextlib import suppress
from typing import Any

from edge.base.errors import CameraError
from edge.cameras.driver import Grabbed
from edge.cameras.genicam.aravis import find_device, load_aravis
from edge.cameras.genicam.buffers import UNKNOWN_ID, BufferPool
from edge.cameras.genicam.chunks import ChunkReader, Chunks, Exposures, set_chunks
from edge.cameras.genicam.features import Features
from edge.cameras.genicam.options import GenicamOptions
from edge.cameras.genicam.pixels import FORMATS, PixelFormat, to_frame
from edge.cameras.genicam.setup import set_network, set_up
from edge.images.frames import Frame

SOCKET_BUFFER = 4 << 20  # bytes; with the automatic size of Aravis, a fifth of the frames got lost
RETENTION = 100_000  # us after the last packet of an incomplete frame, until Aravis gives up on it
SILENCE = 1.0  # s without a frame, after which a camera without a heartbeat is asked for a sign of life
IMAGE = 1  # of Aravis.BufferPartDataType
STATISTICS = ("completed_buffers", "failures", "underruns", "timeouts", "missing_frames", "size_mismatch_errors",
              "missing_packets", "error_packets", "resend_requests", "resent_packets", "duplicated_packets")


class GenicamDriver:
    """The driver for a `GenicamOptions`; see `edge.cameras.driver.Driver`."""

    def __init__(self, section: GenicamOptions) -> None:
        self._section = section
        self.name = f"camera {section.serial}" if section.serial else "the camera"
        self.ids = (0, (1 << 64) - 1)
        self._connection: _Connection | None = None

    def connect(self) -> None:
        """Find the camera, configure it and start it. Raises CameraError."""
        self.disconnect()
        self._connection = _Connection(self._section, self.name)
        self.ids = self._connection.ids

    def trigger(self) -> None:
        """Execute TriggerSoftware. Raises CameraError."""
        self._open().trigger()

    def grab(self, timeout: float) -> Grabbed | None:
        """The next frame, or None after ``timeout`` s. Its image is a view of the stream's memory if the format allows.

        Raises CameraError if the camera is gone.
        """
        return self._open().grab(timeout)

    def statistics(self) -> dict[str, int]:
        """The frame and packet counts of Aravis since the camera was connected."""
        connection = self._connection
        return {} if connection is None else connection.statistics()

    def disconnect(self) -> None:
        """Free the camera. Frames that were already delivered stay valid."""
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()

    def _open(self) -> _Connection:
        connection = self._connection
        if connection is None:
            raise CameraError(f"{self.name} is not connected")
        return connection


class _Connection:
    """An open, running camera."""

    def __init__(self, section: GenicamOptions, name: str) -> None:
        self._name = name
        self._aravis, self._glib = load_aravis()
        self._lost = threading.Event()  # set when the camera does not answer
        self._stream: Any = None
        self._pool: BufferPool | None = None
        self._last_sign = time.monotonic()  # of life
        self._missing = 0  # packets so far
        try:
            self._camera = self._aravis.Camera.new(find_device(section.serial))
        except self._glib.Error as error:
            raise CameraError(f"{name} cannot be opened", got=error.message,
                              next="Another program may be using it.") from error
        self._device = self._camera.get_device()
        self._handler = self._device.connect("control-lost", _EventSetter(self._lost))
        try:
            self._start(section)
        except self._glib.Error as error:
            self.close()
            raise CameraError(f"{name} cannot be started", got=error.message) from error
        except BaseException:
            self.close()
            raise

    def _start(self, section: GenicamOptions) -> None:
        camera, aravis = self._camera, self._aravis
        self._gige = camera.is_gv_device()
        if self._gige and not self._device.is_controller():
            self._lost.set()  # it answers only the other program
            raise CameraError(f"{self._name} is held by another program",
                              next="Close that program, such as the vendor's viewer.")
        with suppress(self._glib.Error):  # it may still be running for a program that crashed
            camera.stop_acquisition()
        features = Features(self._device, self._name)
        self._format = set_up(features, section, self._name)
        chunks = set_chunks(features, section.chunks)
        self._reader = ChunkReader(camera.create_chunk_parser(), self._glib.Error) if chunks else None
        set_network(features, camera, section, self._name, self._glib.Error)
        self._size = int(features.number("Width")), int(features.number("Height"))
        self._ticks = self._device.get_timestamp_tick_frequency() if self._gige else 0
        self.ids = self._find_ids(features)
        self._exposures = Exposures(*self.ids)
        if self._gige:
            # The packet sockets of Aravis need CAP_NET_RAW and bypass the firewall. They also silently deliver nothing
            # if the packets arrive at another interface, as with a simulated camera on this machine.
            camera.gv_set_stream_options(aravis.GvStreamOption.PACKET_SOCKET_DISABLED)
        payload = camera.get_payload()
        self._stream = camera.create_stream(None, None)
        if self._stream is None:
            raise CameraError(f"{self._name} provides no stream")
        if self._gige:
            self._stream.set_property("socket-buffer", aravis.GvStreamSocketBuffer.FIXED)
            self._stream.set_property("socket-buffer-size", max(SOCKET_BUFFER, min(4 * payload, 1 << 30)))
            resend = aravis.GvStreamPacketResend
            self._stream.set_property("packet-resend", resend.ALWAYS if section.resend else resend.NEVER)
            self._stream.set_property("frame-retention", RETENTION)
        self._pool = BufferPool(aravis, self._stream, payload)
        camera.start_acquisition()

    def _find_ids(self, features: Features) -> tuple[int, int]:
        if not self._gige:
            return 0, (1 << 64) - 1
        extended = features.has("GevGVSPExtendedIDMode") and features.text("GevGVSPExtendedIDMode") == "On"
        return 1, (1 << 64) - 1 if extended else (1 << 16) - 1

    def trigger(self) -> None:
        camera = self._camera
        if camera is None:
            raise CameraError(f"{self._name} is not connected")
        try:
            camera.software_trigger()
        except self._glib.Error as error:
            self._lost.set()
            raise CameraError(f"{self._name} was not triggered", got=error.message) from error

    def grab(self, timeout: float) -> Grabbed | None:
        if self._lost.is_set():
            raise CameraError(f"{self._name} does not answer any more", got="control lost")
        buffer = self._stream.timeout_pop_buffer(int(1e6 * timeout))
        if buffer is None:
            self._check_alive()
            return None
        self._last_sign = time.monotonic()
        status = buffer.get_status()
        statuses = self._aravis.BufferStatus
        if status == statuses.SUCCESS:
            return self._complete(buffer)
        frame_id, timestamp = buffer.get_frame_id(), buffer.get_timestamp()
        self._give_back(buffer)
        if frame_id == UNKNOWN_ID or status in (statuses.ABORTED, statuses.CLEARED):
            return None  # the id of the next frame will show that this one is missing
        text = status.value_nick.replace("-", " ")
        if status == statuses.MISSING_PACKETS:
            text = f"up to {self._missing_packets()} packets are missing"
        return Grabbed(None, self._exposures.id_of(frame_id, None), timestamp / 1e9 or None, text=text)

    def _check_alive(self) -> None:
        """GigE Vision has a heartbeat. Any other camera is asked to answer after a period of silence."""
        if not self._gige and time.monotonic() - self._last_sign > SILENCE:
            self._last_sign = time.monotonic()
            try:
                self._device.read_register(0)
            except self._glib.Error as error:
                self._lost.set()
                raise CameraError(f"{self._name} does not answer any more", got=error.message) from error

    def _missing_packets(self) -> int:
        """Packets that went missing since the last call. Aravis counts all from a frame's first gap to its end."""
        before = self._missing
        self._missing = self._stream.get_info_uint64_by_name("n_missing_packets") if self._gige else 0
        return self._missing - before

    def _complete(self, buffer: Any) -> Grabbed:
        chunks = self._reader.read(buffer) if self._reader is not None else Chunks()
        ticks = chunks.timestamp if chunks.timestamp and not buffer.get_timestamp() else None
        device_time = buffer.get_timestamp() / 1e9 if ticks is None else ticks / (self._ticks or 1e9)
        frame_id = self._exposures.id_of(buffer.get_frame_id(), chunks.frame_id)
        try:
            image, text = self._image(buffer), ""
        except ValueError as error:  # fewer bytes than its size needs
            image, text = None, str(error)
        return Grabbed(image, frame_id, device_time or None, chunks.encoder, chunks.exposure_us, text)

    def _image(self, buffer: Any) -> Frame:
        """The frame in a complete buffer. The stream gets the buffer back at once, or with the last view of it."""
        assert self._pool is not None
        form, (width, height), padding = self._format, self._size, 0
        try:
            if buffer.get_n_parts() and int(buffer.get_part_data_type(0)) == IMAGE:  # chunk data has no size
                form, width, height, padding = self._part(buffer)
        except ValueError:
            self._give_back(buffer)
            raise
        lent = self._pool.lend(buffer) if form.is_frame and not padding else None
        if lent is not None:
            return to_frame(lent, form, width, height)
        try:
            frame = to_frame(self._pool.bytes_of(buffer), form, width, height, padding)
            return frame.copy() if form.is_frame and not padding else frame
        finally:
            self._give_back(buffer)

    @staticmethod
    def _part(buffer: Any) -> tuple[PixelFormat, int, int, int]:
        """Format, width, height and padding bytes after each row of the first image."""
        code = buffer.get_part_pixel_format(0)
        if code not in FORMATS:
            raise ValueError(f"it has pixel format 0x{code:08x}")
        return FORMATS[code], buffer.get_part_width(0), buffer.get_part_height(0), buffer.get_part_padding(0)[0]

    def _give_back(self, buffer: Any) -> None:
        if self._pool is not None:
            self._pool.give_back(buffer)

    def statistics(self) -> dict[str, int]:
        if self._pool is None:
            return {}
        stream = self._stream
        there = {stream.get_info_name(i) for i in range(stream.get_n_infos())}
        return {name: stream.get_info_uint64_by_name(f"n_{name}") for name in STATISTICS if f"n_{name}" in there}

    def close(self) -> None:
        """Stop the camera and leave it to others. Does not wait for a camera that does not answer."""
        camera, self._camera = self._camera, None
        device, self._device = self._device, None
        stream, self._stream = self._stream, None
        pool, self._pool = self._pool, None
        answers = not self._lost.is_set()
        if answers:
            with suppress(self._glib.Error):
                camera.stop_acquisition()
        device.disconnect(self._handler)
        if pool is not None:
            pool.close()
        if answers and camera.is_gv_device():
            with suppress(self._glib.Error):
                device.leave_control()
        last = [pool, camera, device, stream]
        del pool, camera, device, stream  # now only `last` refers to them
        if answers:
            _free(last)
        else:
            threading.Thread(target=_free, args=(last,), name="free camera", daemon=True).start()


def _free(last: list[Any]) -> None:
    """Free the stream, then the rest, in reverse order. Aravis takes seconds to say goodbye to a dead camera."""
    while last:
        last.pop()


class _EventSetter:
    """A callback for the thread of Aravis. It must not refer to the camera, or the camera would never be freed."""

    def __init__(self, event: threading.Event) -> None:
        self._event = event

    def __call__(self, *_: object) -> None:
        self._event.set()
