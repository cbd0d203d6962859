"""What to change about a camera, from what its trial found."""

from __future__ import annotations

from edge.cameras.section import CameraSection
from edge.tools.camera_test.report import CameraReport

CLIPPED_MEAN, CLIPPED_WORST = 0.002, 0.01  # shares of pixels at 255, of all images and of one
BLACK_MEAN = 0.02  # share of pixels at 0
DARK, BRIGHT = 45, 215  # mean grey levels
SOFTER = 0.5  # focus of an image over the median one, from which it is told
KEEPS_UP = 0.97  # of the rate that is asked for
UNEVEN = 0.2  # of the interval that the jitter may have


def advise(report: CameraReport, section: CameraSection, rate: float) -> list[str]:
    """What is wrong, and what to change; the worst first. ``rate``: triggers a second that were given."""
    return [*_losses(report, section), *_times(report, section, rate), *_exposure(report), *_focus(report)]


def _plural(number: int, what: str) -> str:
    return f"{number} {what}" + ("" if number == 1 else "s")


def _losses(report: CameraReport, section: CameraSection) -> list[str]:
    said = []
    if report.disconnects:
        why = f" ({report.errors[0]})" if report.errors else ""
        said.append(f"the connection was lost {_plural(report.disconnects, 'time')}, and came back {_plural(report.reconnects, 'time')}"
                    f"{why}: look at cable, plug and power")
    if not report.frames:
        why = report.errors[0] if report.errors else "see that no other program has the camera"
        said.append(section.no_frame_advice or f"no whole frame came: {why}")
    if report.gaps or report.incomplete:
        told = " and ".join(f"{_plural(number, 'frame')} {what}" for number, what in (
            (report.gaps, "never came"), (report.incomplete, "came incomplete")) if number)
        said.append(f"{told}: {section.loss_advice(report.counters)}")
    if report.counters.get("underruns"):
        said.append(f"{_plural(report.counters['underruns'], 'frame')} found no buffer free: this machine did not take them in time; give "
                    "it less to do beside the line")
    if report.dropped:
        said.append(f"{_plural(report.dropped, 'frame')} waited too long and were dropped: this machine is too slow for this rate")
    if report.unanswered:
        said.append(f"nothing came for {report.unanswered} of {_plural(report.triggers or 0, 'trigger')}: the camera was not ready for "
                    "them. Lower --rate, exposure_us or the size of the roi until it answers all")
    return said


def _times(report: CameraReport, section: CameraSection, rate: float) -> list[str]:
    said = []
    longest = report.trigger_to_exposure_ms
    if longest is not None and longest.max > section.window_ms and section.match != "encoder":
        said.append(f"window_ms = {section.window_ms:g} is too small: a frame was exposed {longest.max:.1f} ms after its trigger. Set "
                    f"window_ms = {report.window_ms:g}")
    if report.triggers is None and section.runs_free and report.window_ms and report.window_ms > section.window_ms * 1.5:
        said.append(f"window_ms = {section.window_ms:g} is too small for frames {report.interval_ms:.0f} ms apart: the first one after a "
                    f"trigger may come later. Set window_ms = {report.window_ms:g}, or raise the camera's frame rate")
    if report.triggers is not None and report.window_ms and report.window_ms > 500 / rate:
        said.append(f"a window_ms of {report.window_ms:g} is more than half of the {1000 / rate:.0f} ms between two parts at {rate:g} a "
                    "second: frames could be of either")
    if report.triggers is not None and not report.unanswered and report.rate is not None and report.rate < KEEPS_UP * rate:
        said.append(f"{report.rate:.1f} frames came a second, not {rate:g}: camera or machine is too slow for this rate")
    if report.jitter_ms is not None and report.interval_ms and report.jitter_ms.p99 > UNEVEN * report.interval_ms:
        by = "the camera's clock" if report.device_times else "their arrival here"
        said.append(f"the frames come unevenly, {report.jitter_ms.p99:.1f} ms off at p99 of {report.interval_ms:.1f} ms by {by}: look "
                    "for gaps, and for load on this machine")
    if report.overtaken or report.doubled:
        said.append(f"{report.overtaken} frames were overtaken and {report.doubled} came twice: the network has two ways to here, or a "
                    "faulty switch")
    return said


def _exposure(report: CameraReport) -> list[str]:
    if report.level is None:
        return []
    said = []
    now = "exposure_us" if report.exposure_us is None else f"exposure_us, now {report.exposure_us:g}"
    bright = report.clipped["high"] > CLIPPED_MEAN or report.clipped["high_worst"] > CLIPPED_WORST
    if bright:
        said.append(f"{100 * report.clipped['high']:.1f} % of the pixels are at 255, {100 * report.clipped['high_worst']:.1f} % in the "
                    f"worst image, and show nothing: lower {now}, or the gain, or soften the light (red on the sheet)")
    elif report.level > BRIGHT:
        said.append(f"the images are bright, mean level {report.level:.0f} of 255: lower {now}, or the gain")
    elif report.level < DARK:
        said.append(f"the images are dark, mean level {report.level:.0f} of 255: more light, or raise {now}, or the gain")
    if report.clipped["low"] > BLACK_MEAN:
        said.append(f"{100 * report.clipped['low']:.1f} % of the pixels are at 0: all is well if that is background (blue on the sheet); "
                    f"on the part, {'more even light' if bright else f'raise {now}, or the black level'}")
    return said


def _focus(report: CameraReport) -> list[str]:
    said = []
    if report.focus and report.focus["lowest"] < SOFTER * report.focus["median"]:
        share = 100 * report.focus["lowest"] / report.focus["median"]
        said.append(f"the least sharp image has {share:.2g} % of the usual sharpness: motion blur (a shorter exposure_us, more light), or "
                    "a part out of focus; see the sheet")
    if report.focus and report.focus["median"] < SOFTER * report.focus["highest"]:
        share = 100 * report.focus["median"] / report.focus["highest"]
        said.append(f"the usual image has {share:.0f} % of the sharpness of the best one: focus can be better. Turn the lens while this "
                    "runs, and leave it where the sheet's sharpest image was taken")
    if report.measured < report.frames:
        said.append(f"{report.measured} of {report.frames} frames were looked at: this machine cannot look at all of them at this rate; "
                    "none of the counts suffers")
    return said
