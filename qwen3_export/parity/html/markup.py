"""HTML and SVG as strings that know they are markup: whatever else is put into an element is escaped."""

from __future__ import annotations

import html
from collections.abc import Iterable

__all__ = ["Markup", "definitions", "join", "svg", "tag"]

VOID = frozenset({"meta", "br"})

Attribute = str | float | bool | None


class Markup(str):
    """Text that is already HTML."""

    __slots__ = ()


def tag(name: str, /, *content: str, **attributes: Attribute) -> Markup:
    """An element; ``class_`` is written class, ``aria_label`` aria-label, and attributes of None are left out."""
    written = "".join(f" {_attribute(key, value)}" for key, value in attributes.items() if value not in (None, False))
    return Markup(f"<{name}{written}>" if name in VOID else f"<{name}{written}>{join(content)}</{name}>")


def join(parts: Iterable[str]) -> Markup:
    """Parts one after the other, what is no markup escaped."""
    return Markup("".join(part if isinstance(part, Markup) else html.escape(part) for part in parts))


def definitions(pairs: Iterable[tuple[str, str]], **attributes: Attribute) -> Markup:
    """A list of terms and what they are."""
    groups = [tag("div", tag("dt", term), tag("dd", value)) for term, value in pairs]
    return tag("dl", *groups, **attributes)


def svg(*content: str, width: float, height: float, title: str, description: str) -> Markup:
    """A picture as wide as its place allows, with what a screen reader says of it."""
    return tag(
        "svg", tag("title", title), tag("desc", description), *content, role="img", viewBox=f"0 0 {width:g} {height:g}"
    )


def _attribute(key: str, value: Attribute) -> str:
    name = key.rstrip("_").replace("_", "-")
    if value is True:
        return name
    text = f"{value:.6g}" if isinstance(value, float) else str(value)
    return f'{name}="{html.escape(text)}"'
