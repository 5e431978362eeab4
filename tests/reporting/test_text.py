"""Values as text for people."""

import pytest

from mdw_jax.reporting.text import probability_text


@pytest.mark.parametrize(("value", "text"), [
    (0.0, "< 0.001"), (1.234e-7, "< 0.001"), (0.00123, "0.001"), (0.00456, "0.005"), (0.03141, "0.03"), (0.5, "0.50"),
    (0.98765, "0.99"), (0.9973, "> 0.99"), (1.0, "> 0.99")])
def test_probabilities_have_no_more_digits_than_mean_something(value, text):
    assert probability_text(value) == text
