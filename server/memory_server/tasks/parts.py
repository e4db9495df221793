"""Fits tasks into answers: shows the beginnings of their long parts, and pages through all of one task."""

from __future__ import annotations

import zlib
from bisect import bisect_left
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import TypeVar

from memory_core.errors import InvalidArgument
from memory_server.contract import cursors
from memory_server.contract.answer import Answer
from memory_server.contract.tasks import ClaimedTask, PendingAnswer, TaskAnswer, TaskEvent, TaskView, as_text, cut
from memory_server.memories.pages import MOST_CHARACTERS

V = TypeVar("V", bound=TaskView)
_PARTS = ("result", "description", "payload", "handoff", "error", "progress", "metrics")
_HISTORY = "history"
_TITLE_CHARS = 200
"""Of a description, which is never left out."""
_ENOUGH_CHARS, _MOST_MEMORIES = 200, 20
_FEW_EVENTS = (20, 3)
"""Events that are shown if there is no room for all."""
_MOST_CURSOR = 400
_MOST_MEASURES, _FULL = 12, 0.97
"""An answer is measured so often at most, and is full with this share of its tokens: measuring takes time."""


def long_texts(view: TaskView) -> dict[str, str]:
    """Return the parts of a task that may be long, by name. Those that are not text are returned as JSON."""
    parts = {name: getattr(view, name) for name in _PARTS}
    return {name: as_text(value) for name, value in parts.items() if value is not None}


def shortened(view: V, texts: Mapping[str, str], chars: int) -> V:
    """Leave at most so many characters of each part of a task. `cut` names the parts that are only a beginning."""
    limits = {name: max(chars, _TITLE_CHARS) if name == "description" else chars for name in texts}
    begun = {name: text[: limits[name]] for name, text in texts.items() if len(text) > limits[name]}
    return view.model_copy(update={**begun, "cut": list(begun)}) if begun else view


def most_chars(lengths: Iterable[int], most: int, tokens_of: Callable[[int], int]) -> int:
    """Return how many characters of each text fit into so many tokens. Short texts leave their share to the others."""
    lengths = list(lengths)
    bound = MOST_CHARACTERS * most
    fits = bisect_left(
        range(max(lengths, default=0) + 1), True, key=lambda chars: sum(min(each, chars) for each in lengths) > bound
    )
    low, high = 0, max(fits - 1, 0)
    if (above := tokens_of(high)) <= most:
        return high
    below = tokens_of(low)
    for step in range(_MOST_MEASURES):
        if high - low < 2 or below > _FULL * most:
            break
        share = 0.5 if step % 2 else (most - below) / (above - below)
        middle = min(max(low + int((high - low) * share), low + 1), high - 1)
        if (measured := tokens_of(middle)) <= most:
            low, below = middle, measured
        else:
            high, above = middle, measured
    return low


def newest_texts(history: Sequence[TaskEvent], chars: int) -> tuple[list[TaskEvent], int]:
    """Keep the errors and handoffs of the newest events, up to so many characters; also count the events without."""
    kept, omitted = list[TaskEvent](), 0
    for event in reversed(history):
        length = len(event.error or "") + len(event.handoff or "")
        chars -= length
        is_left_out = bool(length) and chars < 0
        omitted += is_left_out
        kept.append(event.model_copy(update={"error": None, "handoff": None}) if is_left_out else event)
    return kept[::-1], omitted


def first_page(answer: TaskAnswer, most: int, history_chars: int) -> TaskAnswer:
    """Shorten the long parts of a task until the answer fits into so many tokens; 0 for all but the texts of a long
    history. The cursor leads to the rest of them."""
    texts, events = long_texts(answer.task), answer.history

    def at(number: int, chars: int) -> TaskAnswer:
        history = newest_texts(events[len(events) - number :], min(chars, history_chars))[0]
        page = {"task": shortened(answer.task, texts, chars), "history": history}
        return _with_rest(answer.model_copy(update=page), texts, events)

    lengths = [*map(len, texts.values()), sum(len(event.error or "") + len(event.handoff or "") for event in events)]
    longest = max(lengths)
    if not most:
        return at(len(events), longest)
    page = answer
    for number in (len(events), *(few for few in _FEW_EVENTS if few < len(events))):
        chars = most_chars(lengths, most, _tokens_of(partial(at, number)))
        page = at(number, chars)
        if chars >= min(_ENOUGH_CHARS, longest):
            break
    return page


def _with_rest(answer: TaskAnswer, texts: Mapping[str, str], events: Sequence[TaskEvent]) -> TaskAnswer:
    """Name the parts that are not shown whole, and where they go on."""
    begun = {name: len(getattr(answer.task, name)) for name in answer.task.cut or ()}
    missing = [f"{name} ({shown:,} of {len(texts[name]):,} characters)" for name, shown in begun.items()]
    positions = [_write_position(name, texts[name], shown) for name, shown in begun.items()]
    if answer.history != events:
        missing.append("history")
        positions.append(_write_position(_HISTORY, "", 0))
    if not missing:
        return answer
    reason = f"not all is shown of: {', '.join(missing)}"
    return answer.model_copy(update={"partial": True, "reason": reason, "next_cursor": "~".join(positions)})


def next_page(answer: TaskAnswer, cursor: str, most: int) -> TaskAnswer:
    """Return the page of a task's parts to which a cursor leads, of at most so many tokens; 0 for all of the part.

    Raises:
        InvalidArgument: the cursor is unknown, or what was read before it was changed.
    """
    position, _, rest = cursor.partition("~")
    texts = {**long_texts(answer.task), _HISTORY: "\n".join(event.line() for event in answer.history)}
    name, start = _read_position(position, texts) if len(cursor) <= _MOST_CURSOR else ("", 0)
    text = texts.get(name, "")
    if start >= len(text):
        raise cursors.unknown(cursor)
    title = cut(texts["description"], _TITLE_CHARS)
    task = answer.task.model_copy(update={**dict.fromkeys(_PARTS), "description": title})

    def at(end: int) -> TaskAnswer:
        more = [_write_position(name, text, end)] if end < len(text) else []
        return TaskAnswer(
            task=task,
            part=name,
            content=text[start:end],
            characters=f"{start + 1:,}–{end:,} of {len(text):,}",
            next_cursor="~".join([*more, *([rest] if rest else [])]) or None,
        )

    if not most:
        return at(len(text))
    return at(start + max(most_chars([len(text) - start], most, lambda chars: at(start + chars).tokens()), 1))


def _write_position(name: str, text: str, position: int) -> str:
    return f"{name}.{position}.{_check(text[:position])}"


def _read_position(position: str, texts: Mapping[str, str]) -> tuple[str, int]:
    name, _, others = position.partition(".")
    number, _, check = others.partition(".")
    if name not in texts or not (number.isascii() and number.isdecimal() and len(number) < 12):
        raise cursors.unknown(position)
    if _check(texts[name][: int(number)]) != check:
        hint = "read it again without a cursor"
        raise InvalidArgument(f"the {name} of the task was changed since the page before", hint=hint)
    return name, int(number)


def _check(text: str) -> str:
    return f"{zlib.crc32(text.encode(errors='surrogatepass')):08x}"


def fit_claims(answer: PendingAnswer, most: int, why: str) -> PendingAnswer:
    """Shorten the longest texts of claimed tasks, then leave memories out, until the answer fits into so many tokens.
    `why` tells where the rest is."""
    if answer.tokens(most) <= most:
        return answer
    begun = {"tasks": answer.tasks, "held": answer.held}
    answer = answer.model_copy(
        update={name: [task.with_short_lists() for task in group] for name, group in begun.items()}
    )
    tasks = [*answer.tasks, *answer.held]
    texts = {task.task_id: long_texts(task) for task in tasks}
    lengths = [len(text) for parts in texts.values() for text in parts.values()]
    lengths += [len(text) for task in tasks for text in _attached(task)]

    def at(memories: int, chars: int) -> PendingAnswer:
        def of(group: list[ClaimedTask]) -> list[ClaimedTask]:
            return [_begun(task, texts[task.task_id], memories, chars) for task in group]

        page = answer.model_copy(update={"tasks": of(answer.tasks), "held": of(answer.held)})
        if [*page.tasks, *page.held] == tasks:
            return page
        reason = "; ".join(filter(None, [answer.reason, why]))
        return page.model_copy(update={"partial": True, "reason": reason})

    fitting = answer
    for memories in (_MOST_MEMORIES, 1, 0):
        tokens_of = _tokens_of(partial(at, memories))
        chars = most_chars(lengths, most, tokens_of)
        fitting = at(memories, chars)
        if chars >= min(_ENOUGH_CHARS, max(lengths, default=0)):
            break
    return fitting


def _tokens_of(at: Callable[[int], Answer]) -> Callable[[int], int]:
    return lambda chars: at(chars).tokens()


def _attached(task: ClaimedTask) -> list[str]:
    """Return the texts that come with a task."""
    failures = [text for event in task.earlier_failures for text in (event.error, event.handoff)]
    results = [as_text(one.result) for one in task.predecessors if one.result is not None]
    return [text for text in (*failures, *results, *(hit.memory.content for hit in task.memories)) if text]


def _begun(task: ClaimedTask, texts: Mapping[str, str], memories: int, chars: int) -> ClaimedTask:
    """Leave at most so many characters of each text of a task, and so many memories."""
    hits = task.memories[:memories]
    update = {
        "earlier_failures": [event.begun(chars) for event in task.earlier_failures],
        "predecessors": [one.begun(chars) for one in task.predecessors],
        "memories": [hit.model_copy(update={"memory": hit.memory.begun(chars)}) for hit in hits],
    }
    return shortened(task, texts, chars).model_copy(update=update)
