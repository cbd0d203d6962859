"""PLC link `frames`: a PLC that speaks another version of the protocol, over a pseudo terminal."""

from __future__ import annotations

import os
import tty

import pytest

from edge.part.events import LinkBack, LinkLost, Trigger
from edge.plc.frames.link import FramesLink
from edge.plc.wire import Message, Type


def heartbeat(version: int) -> bytes:
    return Message(Type.PLC_HEARTBEAT, 1, 7, 0, version).encode()


TRIGGER = Message(Type.TRIGGER, 0, 7, 1, 17).encode()


@pytest.fixture
def link_and_port():
    near, far = os.openpty()
    tty.setraw(far)
    link = FramesLink(os.ttyname(far), 115200)
    link.open()
    link.room = 9
    yield link, near
    link.close()
    os.close(near)
    os.close(far)


@pytest.fixture
def wake():
    descriptor, held = os.pipe()
    yield descriptor
    os.close(descriptor)
    os.close(held)


@pytest.mark.parametrize("version", [0, 1])
def test_a_plc_of_this_version_is_heard_whether_or_not_it_says_its_version(link_and_port, wake, version):
    link, port = link_and_port
    os.write(port, heartbeat(version) + TRIGGER)
    assert [type(event) for event in link.read_events(5.0, wake)] == [LinkBack, Trigger]


def test_a_plc_of_another_version_is_reported_once_and_not_listened_to_until_it_speaks_this_one(link_and_port, wake):
    link, port = link_and_port
    os.write(port, heartbeat(2) + TRIGGER)
    (lost,) = link.read_events(5.0, wake)
    assert isinstance(lost, LinkLost) and "version 2 of the `frames` protocol, and this line version 1" in lost.reason
    os.write(port, heartbeat(2))
    assert link.read_events(5.0, wake) == []
    assert link.counters()["other_version"] == 3
    os.write(port, heartbeat(0) + TRIGGER)
    assert [type(event) for event in link.read_events(5.0, wake)] == [LinkBack, Trigger]


def test_a_line_that_takes_no_parts_yet_reports_the_other_version_when_it_does(link_and_port, wake):
    """Line control does not report a lost link before it takes parts."""
    link, port = link_and_port
    link.room = 0
    os.write(port, heartbeat(2))
    assert link.read_events(5.0, wake) == []
    link.room = 9
    assert isinstance(link.read_events(0.0, wake)[0], LinkLost)
