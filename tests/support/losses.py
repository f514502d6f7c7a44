"""What a JSON value has that another one lacks."""

from __future__ import annotations

from collections.abc import Collection, Iterator


def losses(given: object, kept: object, where: str = "", *, omitted: Collection[object] = ()) -> Iterator[str]:
    """Yields the parts of a JSON value that `kept` lacks; 1 equals 1.0.

    Args:
        given: The value.
        kept: What is left of it.
        where: The path of the value.
        omitted: Values of an object's fields that `kept` may lack, such as null.
    """
    if isinstance(given, dict) and isinstance(kept, dict):
        for name, value in given.items():
            if value not in omitted:
                yield from losses(value, kept.get(name), f"{where}.{name}", omitted=omitted)
    elif isinstance(given, list) and isinstance(kept, list) and len(given) == len(kept):
        for position, (one, other) in enumerate(zip(given, kept, strict=True)):
            yield from losses(one, other, f"{where}[{position}]", omitted=omitted)
    elif given != kept:
        yield f"{where}: {given!r} became {kept!r}"
