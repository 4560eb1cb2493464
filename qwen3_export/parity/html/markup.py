"""HTML and SVG as strings. Text is escaped, unless its type says that it is already markup."""

from __future__ import annotations

import html
from collections.abc import Iterable

__all__ = ["Markup", "definitions", "join", "svg", "tag"]

VOID = frozenset({"meta", "br"})

Attribute = str | float | bool | None


class Markup(str):
    """A string that is already HTML, and is not escaped again."""

    __slots__ = ()


def tag(name: str, /, *content: str, **attributes: Attribute) -> Markup:
    """An element with its content, which is escaped unless it is Markup.

    Attribute names are written as in HTML: ``class_`` becomes class, ``aria_label`` becomes aria-label. True writes the
    name alone; None and False leave the attribute out.
    """
    written = "".join(f" {_attribute(key, value)}" for key, value in attributes.items() if value not in (None, False))
    return Markup(f"<{name}{written}>" if name in VOID else f"<{name}{written}>{join(content)}</{name}>")


def join(parts: Iterable[str]) -> Markup:
    """The parts in a row, escaped unless they are Markup."""
    return Markup("".join(part if isinstance(part, Markup) else html.escape(part) for part in parts))


def definitions(pairs: Iterable[tuple[str, str]], **attributes: Attribute) -> Markup:
    """A list of terms, each with its value (``<dl>``)."""
    groups = [tag("div", tag("dt", term), tag("dd", value)) for term, value in pairs]
    return tag("dl", *groups, **attributes)


def svg(*content: str, width: float, height: float, title: str, description: str) -> Markup:
    """A picture that fills the width it is given. Screen readers read the title and the description aloud."""
    return tag(
        "svg", tag("title", title), tag("desc", description), *content, role="img", viewBox=f"0 0 {width:g} {height:g}"
    )


def _attribute(key: str, value: Attribute) -> str:
    name = key.rstrip("_").replace("_", "-")
    if value is True:
        return name
    text = f"{value:.6g}" if isinstance(value, float) else str(value)
    return f'{name}="{html.escape(text)}"'
