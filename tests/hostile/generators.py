"""What hostile input is made of, and how long to look for more: `MORPHLINE_FUZZ=3600 pytest -n0 tests/hostile` searches
for an hour, each test for its share, other examples each time; without it each takes a few seconds and always the same
examples."""

import functools
import os
import time
import unicodedata
from collections.abc import Callable
from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

SECONDS = float(os.environ.get("MORPHLINE_FUZZ", 0))
tried = dict[str, int]()
"""How many examples each test has tried."""
share = [SECONDS]
"""The seconds that each may search for."""

json_leaves = (
    st.none() | st.booleans() | st.integers() | st.integers(-3, 3) | st.floats() | st.text(max_size=8)
    | st.sampled_from(["", "../x", "a/b", "/etc/passwd", "\x1b[2J", "x" * 300, 10**400, -1, 0, 1e308])
)  # fmt: skip
json_values: st.SearchStrategy[Any] = st.recursive(
    json_leaves,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)


def hostile(examples: int) -> Callable[[Any], Any]:
    """Settings of a property test: so many examples in CI, the same each time; by hand so many again and again, others
    each time, for as long as it has."""
    chosen = settings(
        max_examples=examples,
        derandomize=not SECONDS,
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
    )

    def searching(test: Any) -> Any:
        test = chosen(test)
        if not SECONDS:
            return test

        @functools.wraps(test)
        def again(*arguments: Any, **named: Any) -> None:
            started = time.monotonic()
            while time.monotonic() - started < share[0]:
                test(*arguments, **named)
                name = os.environ.get("PYTEST_CURRENT_TEST", test.__qualname__).removesuffix(" (call)")
                tried[name] = tried.get(name, 0) + examples

        return again

    return searching


def is_plain(text: str) -> bool:
    """Whether a terminal only shows it: nothing moves the cursor, begins a line or turns the direction of text."""
    return not {unicodedata.category(letter) for letter in text} & {"Cc", "Cf", "Cs", "Zl", "Zp"}


def damaged(content: bytes) -> st.SearchStrategy[bytes]:
    """A file's bytes, cut, with bytes changed, or with a piece of it elsewhere."""
    place = st.integers(0, len(content))
    cut = place.map(lambda end: content[:end])
    changed = st.tuples(place, st.binary(min_size=1, max_size=6)).map(
        lambda where: content[: where[0]] + where[1] + content[where[0] + len(where[1]) :]
    )
    moved = st.tuples(place, place, place).map(
        lambda where: content[: where[0]] + content[where[1] : where[2]] + content[where[0] :]
    )
    return cut | changed | moved


def changed_value(value: Any) -> st.SearchStrategy[Any]:
    """JSON with one part of it replaced, removed or added."""
    places = list(_places(value))

    def apply(choice: tuple[tuple[Any, ...], Any, str]) -> Any:
        path, new, how = choice
        return _with(value, path, new, how)

    return st.tuples(st.sampled_from(places), json_values, st.sampled_from(["set", "remove", "add"])).map(apply)


def _places(value: Any, path: tuple[Any, ...] = ()) -> Any:
    yield path
    if isinstance(value, dict):
        for key, item in value.items():
            yield from _places(item, (*path, key))
    elif isinstance(value, list):
        for number, item in enumerate(value[:3]):
            yield from _places(item, (*path, number))


def _with(value: Any, path: tuple[Any, ...], new: Any, how: str) -> Any:
    if not path:
        return new
    key, rest = path[0], path[1:]
    if isinstance(value, list):
        items = list(value)
        if not rest and how == "remove":
            del items[key]
        elif not rest and how == "add":
            items.insert(key, new)
        else:
            items[key] = _with(items[key], rest, new, how)
        return items
    if not rest and how == "remove":
        return {name: item for name, item in value.items() if name != key}
    if not rest and how == "add":
        return {**value, "added": new}
    return {**value, key: _with(value[key], rest, new, how)}
