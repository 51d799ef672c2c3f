"""Numbers as a reader wants them."""

import math

import pytest

from bench.page import formatting
from bench.results import numbers


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        (formatting.number(9.996), "10.0"),
        (formatting.number(1234567.0), "1,234,567"),
        (formatting.number(0.0), "0"),
        (formatting.duration(4560.0), "4.56 ms"),
        (formatting.size(3 * 2**19), "1.5 MiB"),
        (formatting.times(0.998), "0.998×"),  # noqa: RUF001
        (formatting.percent(0.05), "5%"),
        (formatting.percent(0.021), "2.1%"),
        (numbers.short(1e-5), "1e-5"),
        (numbers.error_figure("scale_error", 3.14e-8), "3.1e-8"),
        (formatting.change(0.051), "+5.1%"),
        (formatting.plural(1, "cell"), "1 cell"),
        (formatting.plural(1200, "cell"), "1,200 cells"),
        (numbers.error_figure("floor_ratio", 1.0184), "1.018"),
        (numbers.error_figure("error_vs_torch", 1234.5), "1,234"),
        (numbers.error_figure("floor_ratio", math.inf), "not finite"),
        (formatting.number(math.nan), "–"),  # noqa: RUF001
        (formatting.times(None), "–"),  # noqa: RUF001
    ],
)
def test_numbers_are_written_with_three_digits_and_a_unit(written, expected):
    assert written == expected
