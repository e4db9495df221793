"""Finds the dates that a query names, so that memories of that time score higher."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta

import regex

_NAMES = ("jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec")
_MONTH = (
    r"(?P<month>jan(?:uary)?|feb(?:ruary)?|(?-i:M)ar(?:ch)?|apr(?:il)?|(?-i:M)ay|june?|july?|aug(?:ust)?"
    r"|sept?(?:ember)?|oct(?:ober)?|nov(?:ember)?|dec(?:ember)?)\b\.?"
)
"""March and May need a capital letter: in lower case they are ordinary words."""
_DAY = r"(?P<day>0?[1-9]|[12]\d|3[01])(?:st|nd|rd|th)?\b"
_YEAR = r"(?P<year>(?:19|20)\d\d)\b"
_ABSOLUTE = tuple(
    regex.compile(pattern, regex.IGNORECASE)
    for pattern in (
        rf"\b{_YEAR}-(?P<number>0[1-9]|1[0-2])(?:-{_DAY})?",
        rf"\b{_DAY}\s+(?:of\s+)?{_MONTH}(?:,?\s+(?:of\s+)?{_YEAR})?",
        rf"\b{_MONTH}(?:\s+{_DAY})?(?:,?\s+(?:of\s+|in\s+)?{_YEAR})?",
        rf"\b{_YEAR}",
    )
)
_RELATIVE = regex.compile(
    r"\b(?:(?P<near>today|yesterday)|(?P<which>last|this)\s+(?P<unit>week|month|year))\b", regex.IGNORECASE
)
_DAYS_LATER = 3  # for so many days agents still write about an event as recent


@dataclass(frozen=True, slots=True)
class Moment:
    """A day, month or year; None matches any."""

    year: int | None = None
    month: int | None = None
    day: int | None = None

    def holds(self, day: date) -> bool:
        return self.year in (None, day.year) and self.month in (None, day.month) and self.day in (None, day.day)


Moments = tuple[Moment, ...]


def moments(query: str, now: float) -> Moments:
    """Return the days, months and years that a query names, and common phrases relative to now; English only."""
    today = datetime.fromtimestamp(now, UTC).date()
    found = [moment for match in _RELATIVE.finditer(query) for moment in _relative(match, today)]
    for pattern in _ABSOLUTE:
        found += [_absolute(match) for match in pattern.finditer(query)]
        query = pattern.sub(" ", query)
    return tuple(dict.fromkeys(found))


def is_near(named: Moments, when: float | None) -> bool:
    """Whether a memory of that time may be about one of the moments: the same day or up to a few days later."""
    if when is None or not named:
        return False
    day = datetime.fromtimestamp(when, UTC).date()
    days = [day - timedelta(days=back) for back in range(_DAYS_LATER + 1) if day.toordinal() > back]
    return any(moment.holds(each) for moment in named for each in days)


def _absolute(match: regex.Match[str]) -> Moment:
    part = match.groupdict()
    month = _NAMES.index(part["month"][:3].lower()) + 1 if part.get("month") else part.get("number")
    return Moment(*(int(number) if number else None for number in (part.get("year"), month, part.get("day"))))


def _relative(match: regex.Match[str], today: date) -> list[Moment]:
    near, which, unit = match.group("near", "which", "unit")
    back = 0 if (near or which).lower() in {"today", "this"} else 1
    match (near or unit).lower():
        case "month":
            first = today.replace(day=1) - timedelta(days=back)
            return [Moment(first.year, first.month)]
        case "year":
            return [Moment(today.year - back)]
        case "week":
            monday = today - timedelta(days=today.weekday() + 7 * back)
            return [_day(monday + timedelta(days=number)) for number in range(7)]
        case _:
            return [_day(today - timedelta(days=back))]


def _day(day: date) -> Moment:
    return Moment(day.year, day.month, day.day)
