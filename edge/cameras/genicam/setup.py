"""Configures a GenICam camera from the line file, before the camera starts."""

from __future__ import annotations

from typing import Any

from edge.base.errors import CameraError
from edge.cameras.genicam.features import Features
from edge.cameras.genicam.options import GenicamOptions
from edge.cameras.genicam.pixels import FORMATS, PixelFormat


def set_up(features: Features, section: GenicamOptions, camera: str) -> PixelFormat:
    """Set all features of a section: first those in `features`, in their order, then those with keys of their own.

    Returns the pixel format. Raises CameraError.
    """
    if features.has("TriggerSelector") and "FrameStart" in features.entries("TriggerSelector"):
        features.set("TriggerSelector", "FrameStart")  # TriggerActivation and the like then apply to it
    for name, value in section.features.items():
        features.set(name, value)
    if features.has("AcquisitionMode"):
        features.set("AcquisitionMode", "Continuous")
    if section.exposure_us is not None:
        _set_if_there(features, ExposureMode="Timed", ExposureAuto="Off")
        features.set("ExposureTime", section.exposure_us, "exposure_us")
    if section.gain is not None:
        _set_if_there(features, GainAuto="Off")
        features.set("Gain", section.gain, "gain")
    form = choose_format(features, section.pixel_format, camera)
    if section.roi is not None:
        set_region(features, section.roi, camera)
    set_trigger(features, section, camera)
    if section.frame_rate is not None:
        enable = features.name_of("AcquisitionFrameRateEnable")
        if enable is not None:
            features.set(enable, True)
        features.set("AcquisitionFrameRate", section.frame_rate, "frame_rate")
    return form


def _set_if_there(features: Features, **values: str) -> None:
    for name, value in values.items():
        if features.has(name) and value in features.entries(name):
            features.set(name, value)


def choose_format(features: Features, wanted: str | None, camera: str) -> PixelFormat:
    """Set the pixel format; None keeps the camera's own. Raises CameraError that lists the usable formats."""
    entries = features.entries("PixelFormat")
    usable = {FORMATS[code].name: entry for entry, code in entries.items() if code in FORMATS}
    entry = features.text("PixelFormat") if wanted is None else usable.get(wanted, wanted)
    form = FORMATS.get(entries.get(entry, 0))
    if form is None:
        raise CameraError(f"{camera}: `pixel_format` cannot be used",
                          got=entry + ("" if wanted else ", the camera's own setting"),
                          expected="one of " + ", ".join(usable), next="Set `pixel_format` under [camera].")
    features.set("PixelFormat", entry, "pixel_format")
    return form


def set_region(features: Features, roi: list[int], camera: str) -> None:
    """Set the region of interest: x, y, width, height in px. Raises CameraError with the limits and steps."""
    sides = (("x", "OffsetX", "width", "Width", ("WidthMax", "SensorWidth"), roi[0], roi[2]),
             ("y", "OffsetY", "height", "Height", ("HeightMax", "SensorHeight"), roi[1], roi[3]))
    for offset_name, offset, size_name, size, whole, at, length in sides:
        if features.has(offset):
            features.set(offset, 0)  # otherwise it limits the size
        low, high, step = features.limits(size)
        full = next((features.number(name) for name in whole if features.has(name)), high)
        high = min(high, full)
        if not low <= length <= high or (length - low) % max(1, step):
            raise CameraError(f"{camera}: `roi` has a wrong {size_name}", got=length, expected=_range(low, high, step),
                              next="Fix `roi` under [camera].")
        offset_step = features.limits(offset)[2] if features.has(offset) else 0
        most = high - length if features.has(offset) else 0
        if not 0 <= at <= most or at % max(1, offset_step):
            raise CameraError(f"{camera}: `roi` has a wrong {offset_name}",
                              got=f"{at}, with a {size_name} of {length} px",
                              expected=_range(0, most, offset_step) + f", on a sensor of {full:g} px",
                              next="Fix `roi` under [camera].")
        features.set(size, length, "roi")
        if features.has(offset):
            features.set(offset, at, "roi")


def _range(low: float, high: float, step: float) -> str:
    return f"{low:g} to {high:g}" + (f" in steps of {step:g}" if step > 1 else "")


def set_trigger(features: Features, section: GenicamOptions, camera: str) -> None:
    """Let the line, a sensor or nothing trigger a frame's start. All other triggers are off. Raises CameraError."""
    selectors = features.entries("TriggerSelector") if features.has("TriggerSelector") else {}
    for selector in selectors or [""]:
        if selector:
            features.set("TriggerSelector", selector)
        if features.has("TriggerMode"):
            features.set("TriggerMode", "Off")
    if section.trigger == "off":
        return
    if not features.has("TriggerMode") or (section.trigger == "software" and not features.has("TriggerSoftware")):
        by, missing = "the line" if section.trigger == "software" else "a sensor", "TriggerMode"
        if features.has("TriggerMode"):
            missing = "TriggerSoftware"
        raise CameraError(f"{camera} cannot be triggered by {by}", got=f"no feature {missing}",
                          expected='trigger = "off" under [camera]')
    if selectors:
        features.set("TriggerSelector", "FrameStart", "trigger")
    source = "Software" if section.trigger == "software" else section.trigger_source
    if features.has("TriggerSource"):
        features.set("TriggerSource", source, "trigger" if section.trigger == "software" else "trigger_source")
    features.set("TriggerMode", "On", "trigger")


def set_network(features: Features, camera: Any, section: GenicamOptions, name: str, error: type[Exception]) -> None:
    """Set the packet size and the bandwidth of an open Aravis.Camera. error: what Aravis raises. Raises CameraError."""
    gige = camera.is_gv_device()
    try:
        if gige and section.packet_size:
            features.set("GevSCPSPacketSize", section.packet_size, "packet_size")
        elif gige:
            camera.gv_auto_packet_size()
        if not section.bandwidth_mb_s:
            return
        if features.has("DeviceLinkThroughputLimit"):
            if features.has("DeviceLinkThroughputLimitMode"):
                features.set("DeviceLinkThroughputLimitMode", "On", "bandwidth_mb_s")
            features.set("DeviceLinkThroughputLimit", int(1e6 * section.bandwidth_mb_s), "bandwidth_mb_s")
        elif gige:
            link = features.number("GevLinkSpeed") if features.has("GevLinkSpeed") else 1000
            camera.gv_set_packet_delay(packet_delay_ns(camera.gv_get_packet_size(), section.bandwidth_mb_s, link))
        else:
            raise CameraError(f"{name} cannot limit its bandwidth", got="no feature DeviceLinkThroughputLimit",
                              expected="no `bandwidth_mb_s` under [camera]")
    except error as failure:
        raise CameraError(f"{name}: packet size and bandwidth cannot be set: {failure}") from failure


def packet_delay_ns(packet: int, bandwidth: float, link: float) -> int:
    """The pause between two packets, in ns. packet: bytes. bandwidth: wanted, in MB/s. link: speed in Mbit/s."""
    return max(0, round(1000 * packet / bandwidth - 8000 * packet / link))
