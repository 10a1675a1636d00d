"""What may be written of what is done to an idle function."""

from __future__ import annotations

import pytest

from scalezero_wsgi._lib.idle_action import STOP, IdleAction, idle_action

READ = {
    "stop": STOP,
    "pause": IdleAction(pause=True),
    " pause ": IdleAction(pause=True),
    "stop after 90": IdleAction(after=90.0),
    "pause after 5m": IdleAction(pause=True, after=300.0),
    "pause, stop after 1h": IdleAction(pause=True, stop_after=3600.0),
    "pause after 5m, stop after 1h": IdleAction(pause=True, after=300.0, stop_after=3600.0),
    "pause  after 5m,stop  after 1h30m": IdleAction(pause=True, after=300.0, stop_after=5400.0),
}

WRONG = [
    *("", "sleep", "Stop", "stop now", "stop after", "stop after soon", "stop after 0", "pause after -1s"),
    *("pause,", "pause, stop", "pause, stop after 0", "stop, pause after 1h", "stop, stop after 1h"),
    *("pause after 5m, stop after 5m", "pause after 1h, stop after 5m", "pause, stop after 1, stop after 2"),
    *(None, True, 5, ["pause"]),
]


@pytest.mark.parametrize("text", READ)
def test_what_is_read(text: str) -> None:
    read = idle_action(text)
    assert read == READ[text]
    assert idle_action(read) is read
    assert idle_action(str(read)) == read


@pytest.mark.parametrize("value", WRONG)
def test_what_is_not_allowed_is_named_with_what_is(value: object) -> None:
    with pytest.raises(ValueError, match=r"is not allowed; it must be 'stop', 'pause', .*'pause after") as no:
        idle_action(value)
    assert repr(value) in str(no.value)
