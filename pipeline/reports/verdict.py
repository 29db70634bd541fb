"""What a search found beyond what is stock, in one line a number of calls.

One sampler is said to be better than another only where the interval of their paired difference, on the images of the
report, leaves out 0.
"""

from __future__ import annotations

from collections.abc import Sequence

from fewstep.pipeline.reports.rows import SearchedRow
from fewstep.storage import origins
from fewstep.tasks.metrics.interval import Interval


def verdict(
    nfe: int, budget: int, found: SearchedRow | None, stock: SearchedRow | None, difference: Interval | None
) -> str:
    """The line: what was found beside the best stock sampler of the report, and their paired difference.

    Without a paired difference their own intervals decide, which must not meet. `found` is stock itself where the
    search found nothing better.
    """
    more = f"a larger --budget than {budget:,} may find one"
    return f"NFE {nfe}: {_named(found or stock)}{_said(found, stock, difference, more)}"


def _named(row: SearchedRow | None) -> str:
    """The metric, but for the Frechet distance, whose name is that of its features."""
    return f"by {row.metric}, " if row is not None and not row.metric.startswith("fid") else ""


def best_stock(rows: Sequence[SearchedRow]) -> SearchedRow | None:
    """The best of the rows that are stock: presets, and the model's own scheduler."""
    return min((row for row in rows if is_stock(row)), key=lambda row: row.value, default=None)


def is_stock(row: SearchedRow) -> bool:
    """Whether it is a preset, or the model's own scheduler."""
    return origins.is_stock(row.origin)


def _said(found: SearchedRow | None, stock: SearchedRow | None, difference: Interval | None, more: str) -> str:
    if found is None:
        return f"nothing that was found could be judged; {more}"
    if stock is None:
        return f"found {found.value:.4g} ({found.origin}), with nothing stock beside it in the report"
    name = stock.origin.removeprefix("preset:")
    if is_stock(found):
        best = found.origin.removeprefix("preset:")
        told = f"no schedule better than {best} ({found.value:.4g}) was found; {more}"
        if found is not stock and _side(found, stock, difference) > 0:
            told += f". Better still is {name} ({stock.value:.4g})"
        return told
    value, whose = f"{found.value:.4g} ({found.origin})", "the best stock preset"
    if stock.origin.startswith("own:"):
        whose = "the model's own scheduler"
    side = _side(found, stock, difference)
    if side < 0:
        if stock.value <= 0 or found.value < 0:
            return f"found {value}, below {stock.value:.4g} of {whose}, {name}"
        return f"found {value}, {found.value / stock.value:.0%} of {whose}'s {stock.value:.4g} ({name})"
    if side > 0:
        return f"no schedule better than {name} ({stock.value:.4g}) was found, its best being {value}; {more}"
    apart = f", {difference.low:.3g} to {difference.high:.3g} apart" if difference is not None else ""
    return (
        f"found {value}, no difference that {min(found.images, stock.images):,} images can tell from "
        f"{stock.value:.4g} of {whose}, {name}{apart}"
    )


def _side(first: SearchedRow, second: SearchedRow, difference: Interval | None) -> int:
    """-1 where the first is lower beyond doubt, 1 where it is higher, 0 where nobody can tell."""
    if difference is not None:
        return -1 if difference.high < 0 else 1 if difference.low > 0 else 0
    ends = (first.low, first.high, second.low, second.high)
    low, high, other_low, other_high = (end if end is not None else float("nan") for end in ends)
    return -1 if high < other_low else 1 if low > other_high else 0


def guard_words(guard: str, difference: Interval | None) -> str:
    """What the metric that the search did not see says of the same pair; nothing where it was not asked."""
    if difference is None:
        return ""
    ends = f"{difference.low:.3g} to {difference.high:.3g}"
    if difference.high < 0:
        return f"; {guard} confirms it ({ends})"
    if difference.low > 0:
        return f"; {guard}, which the search did not see, says it is worse ({ends})"
    return f"; {guard}, which the search did not see, tells no difference ({ends})"
