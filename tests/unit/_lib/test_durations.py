from __future__ import annotations

import math

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from scalezero_wsgi._lib.durations import seconds

UNITS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
AMOUNTS = st.integers(0, 10**6)


def seconds_or_error(text: str) -> float | ValueError:
    try:
        return seconds(text)
    except ValueError as error:
        return error


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (0, 0.0),
        (3, 3.0),
        (2.5, 2.5),
        ("0", 0.0),
        ("3", 3.0),
        ("2.5", 2.5),
        ("250ms", 0.25),
        ("1s", 1.0),
        ("10m", 600.0),
        ("10m30s", 630.0),
        ("1h", 3600.0),
        ("1.5h", 5400.0),
        ("1d1h1m1s1ms", 90061.001),
        ("1m5ms", 60.005),
        (" 10s\n", 10.0),
    ],
)
def test_durations_as_people_write_them(value: object, expected: float) -> None:
    assert seconds(value) == pytest.approx(expected)


def test_the_result_is_a_float_whatever_was_given() -> None:
    assert type(seconds(3)) is float
    assert type(seconds("3")) is float


@given(st.floats(0, allow_nan=False, allow_infinity=False) | st.integers(0, 10**9))
def test_a_number_of_seconds_is_taken_as_it_is(number: float) -> None:
    assert seconds(number) == number


@given(st.decimals(0, 10**9, places=3))
def test_a_number_written_out_reads_as_that_number(number: object) -> None:
    assert seconds(f"{number:f}") == float(str(number))


@given(st.lists(st.tuples(AMOUNTS, st.sampled_from(sorted(UNITS))), min_size=1, max_size=6))
def test_parts_with_units_add_up(parts: list[tuple[int, str]]) -> None:
    text = "".join(f"{amount}{unit}" for amount, unit in parts)
    assert seconds(text) == pytest.approx(sum(amount * UNITS[unit] for amount, unit in parts))


@given(st.integers(0, 10**9))
def test_milliseconds_split_into_all_units_come_back(total: int) -> None:
    rest, milliseconds = divmod(total, 1000)
    rest, whole = divmod(rest, 60)
    rest, minutes = divmod(rest, 60)
    days, hours = divmod(rest, 24)
    text = f"{days}d{hours}h{minutes}m{whole}s{milliseconds}ms"
    assert seconds(text) == pytest.approx(total / 1000, abs=1e-6)


@given(st.text() | st.text("0123456789.smhd- +e_", max_size=12))
@example("1_0")
@example("1e3")
@example("٣s")
@example("²")
@example("10m 30s")
@example("1.s")
@example("9" * 400)
@example("9" * 400 + "d")
def test_any_text_is_a_finite_duration_or_an_error_that_names_it(text: str) -> None:
    result = seconds_or_error(text)
    if isinstance(result, ValueError):
        assert repr(text) in str(result)
        assert "'250ms', '10m30s' or '1h'" in str(result)
    else:
        assert math.isfinite(result)
        assert result >= 0
        assert text.strip()[0].isdigit()


@pytest.mark.parametrize(
    "value",
    [
        *["", " ", "s", "ms", "1 s", "1s 2s", "-1", "+1", "-1s", "1e3", ".5", "1.", "1,5", "1_000", "0x10"],
        *["1S", "1sec", "1h30", "30 1h", "inf", "nan", "Infinity", "٣", "1µs", "1s;", "1.2.3s", "--1s"],
        *[-1, -0.001, math.nan, math.inf, -math.inf, 10**400, True, False, None, b"1s", [], {}, 1j, object],
    ],
    ids=lambda value: repr(value)[:20],
)
def test_anything_else_is_refused_by_an_error_that_names_the_value_and_what_is_allowed(value: object) -> None:
    with pytest.raises(ValueError, match="is not a duration; allowed are seconds") as caught:
        seconds(value)
    assert str(caught.value).startswith(repr(value))
