"""How a candidate came to be is told to its beginning, whatever it was tuned from and how often."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from fewstep.storage.origins import stock_name, told_origin

BEGINNINGS = {
    "preset:dpmpp-3m/uniform-t": "preset:dpmpp-3m/uniform-t",
    "analytic:ddim/karras": "analytic:ddim/karras",
    "portfolio:a": "portfolio:a",
    "random": "random member",
    "s3": "S^3 proposal",
    "warm-start": "warm start",
}


@given(
    st.sampled_from(sorted(BEGINNINGS)), st.lists(st.sampled_from(["refine:", "refined:"]), max_size=4), st.booleans()
)
def test_a_tuned_one_is_told_by_its_first_start(beginning: str, tunings: list[str], found: bool) -> None:
    origins = {"h0": beginning} | {f"h{i + 1}": f"{how}h{i}" for i, how in enumerate(tunings)}
    told = told_origin(("found:" if found else "") + origins[f"h{len(tunings)}"], origins)
    assert told == "tuned from " * len(tunings) + BEGINNINGS[beginning]


def test_a_start_that_is_lost_or_goes_round_stays_a_hash() -> None:
    assert told_origin("refine:abc", {}) == "tuned from abc"
    assert told_origin("refine:a", {"a": "refine:b", "b": "refine:a"}).endswith("from a")


def test_only_presets_are_stock() -> None:
    assert stock_name("found:preset:ddim/karras") == stock_name("preset:ddim/karras") == "ddim/karras"
    assert not any(stock_name(origin) for origin in ("found:s3", "analytic:ddim/karras", "own:DDIMScheduler"))
