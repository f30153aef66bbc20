"""Bad inputs by the thousand: what may come out of them is an answer or an error of ours, nothing else.

The default run takes a few hundred inputs of each property, always the same ones; `-m slow` takes thousands.
"""

from __future__ import annotations

import functools

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from seen import SEEN

from hf_compress.errors import HfCompressError

HARD_NUMBERS = st.sampled_from(
    [0, -1, 1, 2**31, 2**63, -(2**63) - 1, 10**400, 10**4000, -0.0, 1e-320, 1e308, float("inf"), -float("inf"),
     float("nan"), True, False]
)  # fmt: skip
PATHS = ["../../x", "/etc/passwd", "/", ".", "..", "", "a\0b", "CON", "/dev/null", "~", "x" * 5000, "a/b/c", "\ud800"]
TEXTS = st.one_of(st.text(max_size=12), st.sampled_from([*PATHS, "nan", "2:4", "9" * 500 + ":" + "9" * 501, "${x}"]))
SCALARS = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), HARD_NUMBERS, TEXTS)
JUNK = st.recursive(
    SCALARS,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3), st.dictionaries(st.one_of(TEXTS, st.integers()), inner, max_size=3)
    ),
    max_leaves=6,
)
# What a JSON file can hold.
JSON = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(-(2**70), 2**70), st.floats(), st.text(max_size=8)),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=8), inner, max_size=3)),
    max_leaves=6,
)


def refused(call, *arguments):
    """Return what `call` gives, or the error of ours that it raised; another exception is a bug and goes through."""
    try:
        return call(*arguments)
    except HfCompressError as error:
        return error if str(error).strip() else pytest.fail("an error without a word")


def bad_inputs(inputs, *, known=(), few=150, many=1500):
    """Make a test of a property of one input: `known` inputs first, then `few` from `inputs`, `many` with -m slow."""

    def make(check):
        def counted(value):
            SEEN[check.__name__] += 1
            check(value)

        @pytest.mark.parametrize("count", [few, pytest.param(many, marks=pytest.mark.slow)])
        def test(count):
            run = given(inputs)(counted)
            for value in known:
                run = example(value)(run)
            checks = list(HealthCheck)
            settings(max_examples=count, derandomize=True, deadline=None, database=None, suppress_health_check=checks)(
                run
            )()

        functools.update_wrapper(test, check, assigned=("__module__", "__name__", "__qualname__", "__doc__"))
        del test.__wrapped__  # pytest would look for the arguments of `check`
        return test

    return make
