"""Messages to the operator never hold up the line."""

from __future__ import annotations

import threading
import time

import pytest

from edge.run.operator import REPEAT_AFTER, WAITING, Operator


def test_messages_of_one_kind_are_told_once_a_minute_with_their_number():
    shown: list[str] = []
    now = [0.0]
    operator = Operator(shown.append, lambda: now[0])
    for part in range(5):
        operator.tell(f"part {part} is late")
    operator.tell("the PLC is not heard")
    now[0] = REPEAT_AFTER + 1
    operator.tell("part 9 is late")
    operator.close()
    assert shown == ["part 0 is late", "the PLC is not heard", "part 9 is late (4 more like this since)"]


@pytest.mark.parametrize("error", [BrokenPipeError, SystemExit(1)])
def test_a_terminal_that_is_gone_does_no_harm(error):
    def say(text):
        shown.append(text)
        raise error

    shown: list[str] = []
    operator = Operator(say)
    operator.tell("one")
    operator.tell("two")
    operator.close()
    assert shown == ["one", "two"]


def test_a_terminal_that_hangs_holds_up_nobody():
    hang = threading.Event()
    operator = Operator(lambda text: hang.wait(20))
    start = time.monotonic()
    for number in range(3 * WAITING):
        operator.tell("x" * number)
    operator.close()
    assert time.monotonic() - start < 10
    hang.set()
