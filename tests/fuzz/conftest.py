"""Fuzz tests: a right value or a FewstepError for whatever is read. How many inputs is a hypothesis profile.

`pytest tests/fuzz` runs the profile `quick`: the same few inputs every time. `pytest tests/fuzz
--hypothesis-profile=long` draws 2,000 new ones for each test, or as many as FUZZ_EXAMPLES says. A fuzz test sets
neither `max_examples` nor `deadline` itself.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Generator

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

QUICK, LONG = 40, int(os.environ.get("FUZZ_EXAMPLES", 2000))

unhurried = [HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.function_scoped_fixture]
settings.register_profile(
    "quick", max_examples=QUICK, deadline=None, derandomize=True, database=None, suppress_health_check=unhurried
)
settings.register_profile("long", max_examples=LONG, deadline=None, print_blob=True, suppress_health_check=unhurried)


def pytest_itemcollected(item: pytest.Item) -> None:
    # A run is as long as it was asked to be.
    if item.config.getoption("hypothesis_profile") == "long":
        item.add_marker(pytest.mark.timeout(3600))


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(
    collector: pytest.Collector,
) -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    """The modules of this folder are imported under the profile; all others keep hypothesis's own."""
    before = settings.get_current_profile_name()
    if not collector.config.getoption("hypothesis_profile"):
        settings.load_profile("quick")
    try:
        return (yield)
    finally:
        settings.load_profile(before)


@pytest.fixture(scope="session")
def damaged() -> Callable[[st.DataObject, bytes], bytes]:
    """`damaged(data, content)`: bits flipped, the end cut off, a piece left out, repeated or put in, a few times."""

    def damage(data: st.DataObject, content: bytes) -> bytes:
        changed = bytearray(content)
        for _ in range(data.draw(st.integers(1, 3))):
            at = data.draw(st.integers(0, max(0, len(changed) - 1)))
            to = data.draw(st.integers(at, min(len(changed), at + 40)))
            match data.draw(st.sampled_from(["flip", "cut", "drop", "repeat", "insert"])):
                case "flip" if changed:
                    changed[at] ^= 1 << data.draw(st.integers(0, 7))
                case "cut":
                    del changed[at:]
                case "drop":
                    del changed[at:to]
                case "repeat":
                    changed[to:to] = changed[at:to]
                case _:
                    changed[at:at] = data.draw(st.binary(max_size=12))
        return bytes(changed)

    return damage
