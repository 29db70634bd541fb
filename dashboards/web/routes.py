"""The addresses of the dashboard; all of them only read."""

from __future__ import annotations

from functools import partial
from typing import Annotated, Any

from fastapi import APIRouter, HTTPException, Query, Request
from fastapi.responses import FileResponse, StreamingResponse
from starlette.responses import Response

from fewstep.dashboards.figures import convergence_figure, front_figure, schedule_figure, temporal_figure, width_of
from fewstep.dashboards.networks import kept_network
from fewstep.dashboards.picture import LANES, span_of
from fewstep.dashboards.results import FOUND
from fewstep.dashboards.summary import MESSAGES, count, settings_lines, told
from fewstep.dashboards.web import decisions, findings, heat, pictures
from fewstep.dashboards.web.busy import busy
from fewstep.dashboards.web.candidates import Candidate, candidate, compared, shown, steps
from fewstep.dashboards.web.columns import Columns
from fewstep.dashboards.web.findings import Front
from fewstep.dashboards.web.kept import Kept
from fewstep.dashboards.web.live import changes, mark, stamps
from fewstep.dashboards.web.overview import overview as counted
from fewstep.dashboards.web.places import Entry, Places, Unread
from fewstep.dashboards.web.plots import (
    actors_figure,
    busy_figure,
    funnel_figure,
    heat_figure,
    importance_figure,
    refit_figure,
    tradeoff_figure,
)
from fewstep.dashboards.web.render import Pages
from fewstep.dashboards.web.tradeoff import PAIRS, tradeoff
from fewstep.dashboards.web.trials import SORTS, Asked, trials
from fewstep.errors import ConfigurationError, FewstepError
from fewstep.search_spaces.point import quantization_of
from fewstep.storage.verdicts import VERDICT, told_verdicts

# A question that a browser's form leaves empty.
Number = Annotated[str, Query(pattern=r"^\d{0,9}$")]


def routes(places: Places, pages: Pages) -> APIRouter:
    """All pages of the studies in `places`."""
    router, columns = APIRouter(), Columns()
    overviews = Kept(partial(counted, columns))
    importances = Kept(partial(decisions.importances, columns))
    summaries = Kept(partial(_summary, columns))
    tradeoffs = Kept(partial(tradeoff, columns))

    def study(slug: str) -> Entry:
        entry = places.entry(slug)
        if entry is None:
            raise HTTPException(
                404, "There is no such study here: it may have been moved, or the address is misspelled."
            )
        return entry

    def frame(entry: Entry, tab: str) -> dict[str, Any]:
        """What every page of a study has at its top; asked for first, so that what is written later is told of."""
        stamp = entry.stamp()
        tabs = [("", "overview"), ("/trials", "trials"), ("/schedules", "candidates")]
        tabs += [("/decisions", "decisions")] if entry.budget else []
        tabs += [("/fronts", "trade-offs")] if entry.space in PAIRS else []
        tabs += [("/images", "images")] if pictures.pictures(entry) else []
        tabs += [("/grid", "heat maps")] if next(entry.folder.glob("pivot-*.csv"), None) else []
        return {
            "entry": entry,
            "tabs": tabs,
            "tab": tab,
            "titled": tab.removeprefix("/") or "overview",
            "stamp": stamp,
            "overview": overviews.of(entry),
            "damaged": entry.store.damaged(),
        }

    @router.get("/")
    def studies() -> Response:
        stamp = mark(stamps(places))
        entries, unread = places.find()
        rows = []
        for entry in entries:
            try:
                rows.append(overviews.of(entry))
            except FewstepError as error:
                unread = [*unread, Unread(entry.folder, " ".join(str(error).split()))]
        return pages.page("studies", stamp=stamp, rows=rows, unread=unread, folders=places.folders)

    @router.get("/side-by-side")
    def side_by_side(s: Annotated[list[str] | None, Query()] = None) -> Response:
        stamp = mark(stamps(places))
        entries = [study(slug) for slug in dict.fromkeys(s or [])]
        if len(entries) < 2:
            raise ConfigurationError(
                "choose two studies or more in the list of studies, to see their fronts side by side"
            )
        tables = findings.side_by_side(columns, entries)
        drawn = [(Front(table, table, True, 0), front_figure(table)) for table in tables]
        shown = {str(name) for table in tables for name in table["method"]}
        lacking = [entry for entry in entries if entry.title not in shown]
        return pages.page("side_by_side", stamp=stamp, entries=entries, drawn=drawn, lacking=lacking)

    @router.get("/studies/{slug}")
    def overview(slug: str) -> Response:
        entry = study(slug)
        top = frame(entry, "")
        return pages.page("study", **top, **summaries.of(entry), most=MESSAGES, FOUND=FOUND)

    @router.get("/studies/{slug}/trials")
    def trial_table(
        slug: str,
        nfe: Number = "",
        rung: str = "",
        origin: str = "",
        status: str = "",
        text: Annotated[str, Query(max_length=200)] = "",
        sort: str = "order",
        down: bool = False,
        page: Number = "1",
    ) -> Response:
        entry = study(slug)
        top = frame(entry, "/trials")
        asked = Asked(int(nfe) if nfe else None, rung, origin, status, text.strip(), sort, down, int(page or 1))
        found = trials(columns, entry, asked)
        return pages.page("trials", **top, asked=asked, found=found, sorts=SORTS)

    @router.get("/studies/{slug}/schedules")
    def schedules(slug: str) -> Response:
        entry = study(slug)
        top = frame(entry, "/schedules")
        found = shown(columns, entry)
        return pages.page("schedules", **top, found=_drawn(found))

    @router.get("/studies/{slug}/candidates/{hash_:path}")
    def one(slug: str, hash_: str) -> Response:
        entry = study(slug)
        top = frame(entry, "/schedules")
        found = candidate(columns, entry, hash_)
        table = steps(found.schedule) if found.schedule else []
        others = [other for other in shown(columns, entry) if other.hash != hash_]
        drawn = _drawn([found])[0][1:]
        network = kept_network(entry.folder, quantization_of(found.point) if found.point else None)
        temporal = temporal_figure(network.temporal) if network and len(network.temporal) else None
        return pages.page(
            "candidate",
            **top,
            found=found,
            drawn=drawn,
            steps=table,
            lanes=LANES,
            others=others,
            network=network,
            temporal=temporal,
        )

    @router.get("/compare")
    def compare(a: str = "", b: str = "") -> Response:
        sides = [_named(name) for name in (a, b)]
        top = frame(study(sides[0][0]), "/schedules")
        both = [candidate(columns, study(slug), hash_) for slug, hash_ in sides]
        lines = compared(*both)
        return pages.page("compare", **top, drawn=_drawn(both), lines=lines)

    @router.get("/studies/{slug}/decisions")
    def which_matter(slug: str) -> Response:
        entry = study(slug)
        top = frame(entry, "/decisions")
        drawn = [(told, importance_figure(told.shares)) for told in importances.of(entry)]
        return pages.page("decisions", **top, drawn=drawn, least=decisions.LEAST)

    @router.get("/studies/{slug}/fronts")
    def several_figures(slug: str) -> Response:
        entry = study(slug)
        top = frame(entry, "/fronts")
        found = tradeoffs.of(entry)
        drawn = [tradeoff_figure(found.points, x, y, found.titles) for x, y in found.pairs] if found else []
        return pages.page("fronts", **top, found=found, drawn=drawn)

    @router.get("/studies/{slug}/images")
    def images(slug: str) -> Response:
        entry = study(slug)
        top = frame(entry, "/images")
        found = pictures.pictures(entry)
        strip = pictures.strip_of(entry)
        return pages.page("images", **top, pictures=found, pairs=pictures.pairs(found), strip=strip)

    @router.get("/studies/{slug}/images/{name}")
    def image(slug: str, name: str) -> Response:
        entry = study(slug)
        found = {picture.name: picture for picture in pictures.pictures(entry)}
        if strip := pictures.strip_of(entry):
            found |= {picture.name: picture for _, picture in strip.pictures}
        if name not in found:
            raise HTTPException(404, "The study has published no such picture.")
        return FileResponse(found[name].path, media_type="image/png")

    @router.get("/studies/{slug}/grid")
    def grid(slug: str) -> Response:
        entry = study(slug)
        top = frame(entry, "/grid")
        found = heat.pivots(entry)
        drawn = [(pivot, heat_figure(pivot.table, pivot.across)) for pivot in found]
        return pages.page("grid", **top, drawn=drawn)

    @router.get("/events")
    async def events(request: Request, study: str = "", since: str = "") -> Response:
        told = changes(places, request.is_disconnected, study, since)
        return StreamingResponse(told, media_type="text/event-stream")

    return router


def _summary(columns: Columns, entry: Entry) -> dict[str, Any]:
    """What the first page of a study shows."""
    events = entry.events()
    way, rungs = findings.convergence(columns, entry), findings.rungs(columns, entry)
    refits, worked = findings.refits(events), busy(columns, entry, events)
    notes = [event for event in events if event.kind != VERDICT]
    return {
        "verdicts": list(told_verdicts(events).values()),
        "fronts": [(front, front_figure(front.drawn)) for front in findings.fronts(columns, entry)],
        "convergence": convergence_figure(way) if len(way) else None,
        "rungs": rungs,
        "funnel": funnel_figure(rungs) if rungs else None,
        "refits": refit_figure(refits) if len(refits) else None,
        "busy": worked,
        "workers": busy_figure(worked) if worked else None,
        "actors": actors_figure(worked.actors) if worked and len(worked.actors) else None,
        "kinds": count(event.kind for event in events),
        "messages": told(notes)[::-1],
        "settings": settings_lines(entry.record),
    }


def _drawn(found: list[Candidate]) -> list[tuple[Candidate, object, int]]:
    """Candidates with the pictures of their schedules, all on one axis, and their least widths."""
    known = [c.schedule for c in found if c.schedule is not None]
    span = span_of(known) if known else None
    made = [(schedule_figure(c.schedule, span), width_of(c.schedule)) if c.schedule else (None, 0) for c in found]
    return [(c, figure, width) for c, (figure, width) in zip(found, made, strict=True)]


def _named(text: str) -> tuple[str, str]:
    slug, colon, hash_ = text.partition(":")
    if not colon or not hash_:
        raise ConfigurationError(f"cannot compare {text!r:.80}: give two candidates, each as STUDY:CANDIDATE")
    return slug, hash_
