"""Says what to change about a camera, from what its test found."""

from __future__ import annotations

from edge.cameras.section import CameraSection
from edge.tools.camera_test.report import CameraReport

CLIPPED_MEAN, CLIPPED_WORST = 0.002, 0.01  # share of pixels at 255, over all images and in the worst one
BLACK_MEAN = 0.02  # share of pixels at 0
DARK, BRIGHT = 45, 215  # mean grey levels
SOFTER = 0.5  # ratio of two focus measures, below which one image counts as blurred
KEEPS_UP = 0.97  # share of the requested rate
UNEVEN = 0.2  # jitter as a share of the interval


def advise(report: CameraReport, section: CameraSection, rate: float) -> list[str]:
    """What is wrong and what to change, the worst first. ``rate``: triggers per second during the test."""
    return [*_losses(report, section), *_times(report, section, rate), *_exposure(report), *_focus(report)]


def _plural(number: int, what: str) -> str:
    return f"{number} {what}" + ("" if number == 1 else "s")


def _losses(report: CameraReport, section: CameraSection) -> list[str]:
    advice = []
    if report.disconnects:
        why = f" ({report.errors[0]})" if report.errors else ""
        advice.append(f"the connection was lost {_plural(report.disconnects, 'time')} and restored "
                      f"{_plural(report.reconnects, 'time')}{why}: check cable, plug and power")
    if not report.frames:
        why = report.errors[0] if report.errors else "check that no other program is using the camera"
        advice.append(section.no_frame_advice or f"no complete frame came: {why}")
    if report.gaps or report.incomplete:
        lost = " and ".join(f"{_plural(number, 'frame')} {what}" for number, what in (
            (report.gaps, "never came"), (report.incomplete, "came incomplete")) if number)
        advice.append(f"{lost}: {section.loss_advice(report.counters)}")
    if report.counters.get("underruns"):
        advice.append(f"{_plural(report.counters['underruns'], 'frame')} found no free buffer, because this machine "
                      "did not take the frames in time; run fewer other programs beside the line")
    if report.dropped:
        advice.append(f"{_plural(report.dropped, 'frame')} waited too long and were dropped: this machine is too slow "
                      "for this rate")
    if report.unanswered:
        advice.append(f"{report.unanswered} of {_plural(report.triggers or 0, 'trigger')} got no answer: the camera "
                      "was not ready. Lower --rate, exposure_us or the size of the roi until all of them are answered")
    return advice


def _times(report: CameraReport, section: CameraSection, rate: float) -> list[str]:
    return [*_window(report, section, rate), *_pace(report, rate)]


def _window(report: CameraReport, section: CameraSection, rate: float) -> list[str]:
    advice = []
    delay = report.trigger_to_exposure_ms
    if delay is not None and delay.max > section.window_ms and section.match != "encoder":
        advice.append(f"window_ms = {section.window_ms:g} is too small: a frame was exposed {delay.max:.1f} ms after "
                      f"its trigger. Set window_ms = {report.window_ms:g}")
    if not report.window_ms:
        return advice
    if report.triggers is None and section.runs_free and report.window_ms > section.window_ms * 1.5:
        advice.append(f"window_ms = {section.window_ms:g} is too small for frames {report.interval_ms:.0f} ms apart: "
                      f"the first one after a trigger may come later. Set window_ms = {report.window_ms:g}, or raise "
                      "the camera's frame rate")
    if report.triggers is not None and report.window_ms > 500 / rate:
        advice.append(f"a window_ms of {report.window_ms:g} is more than half of the {1000 / rate:.0f} ms between two "
                      f"parts at {rate:g} per second: a frame could belong to either")
    return advice


def _pace(report: CameraReport, rate: float) -> list[str]:
    advice = []
    answered = report.triggers is not None and not report.unanswered
    if answered and report.rate is not None and report.rate < KEEPS_UP * rate:
        advice.append(f"{report.rate:.1f} frames per second came instead of {rate:g}: the camera or this machine is "
                      "too slow for this rate")
    if report.jitter_ms is not None and report.interval_ms and report.jitter_ms.p99 > UNEVEN * report.interval_ms:
        clock = "the camera's clock" if report.device_times else "their arrival"
        advice.append(f"the frames come unevenly: by {clock}, the p99 of the jitter is {report.jitter_ms.p99:.1f} ms, "
                      f"and the interval {report.interval_ms:.1f} ms. Check for gaps, and for load on this machine")
    if report.overtaken or report.doubled:
        advice.append(f"{report.overtaken} frames were overtaken and {report.doubled} came twice: there are two "
                      "network paths to the camera, or a faulty switch")
    return advice


def _exposure(report: CameraReport) -> list[str]:
    if report.level is None:
        return []
    advice = []
    setting = "exposure_us" if report.exposure_us is None else f"exposure_us, now {report.exposure_us:g}"
    bright = report.clipped["high"] > CLIPPED_MEAN or report.clipped["high_worst"] > CLIPPED_WORST
    if bright:
        advice.append(f"{100 * report.clipped['high']:.1f} % of the pixels are at 255, and "
                      f"{100 * report.clipped['high_worst']:.1f} % in the worst image (red on the sheet). Nothing can "
                      f"be seen there: lower {setting}, or the gain, or soften the light")
    elif report.level > BRIGHT:
        advice.append(f"the images are bright, mean level {report.level:.0f} of 255: lower {setting}, or the gain")
    elif report.level < DARK:
        advice.append(f"the images are dark, mean level {report.level:.0f} of 255: add light, or raise {setting}, or "
                      "the gain")
    if report.clipped["low"] > BLACK_MEAN:
        fix = "make the light more even" if bright else f"raise {setting}, or the black level"
        advice.append(f"{100 * report.clipped['low']:.1f} % of the pixels are at 0 (blue on the sheet): fine for "
                      f"background, but if they are on the part, {fix}")
    return advice


def _focus(report: CameraReport) -> list[str]:
    advice = []
    if report.focus and report.focus["lowest"] < SOFTER * report.focus["median"]:
        share = 100 * report.focus["lowest"] / report.focus["median"]
        advice.append(f"the least sharp image has {share:.2g} % of the usual sharpness: motion blur (shorten "
                      "exposure_us, add light), or a part out of focus; see the sheet")
    if report.focus and report.focus["median"] < SOFTER * report.focus["highest"]:
        share = 100 * report.focus["median"] / report.focus["highest"]
        advice.append(f"the usual image has {share:.0f} % of the sharpness of the best one, so the focus can be "
                      "better. Turn the lens while this runs, and leave it where the sharpest image on the sheet was "
                      "taken")
    if report.measured < report.frames:
        advice.append(f"only {report.measured} of {report.frames} frames were measured, because this machine cannot "
                      "measure all of them at this rate; all of them are counted")
    return advice
