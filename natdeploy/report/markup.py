"""HTML that cannot forget to escape: plain text is escaped where it enters an element, and only elements are `Markup`."""

from __future__ import annotations

from html import escape


class Markup(str):
    """Text that is HTML already."""

    __slots__ = ()


def join(*children: str) -> Markup:
    """The children one after the other; those that are not `Markup` are escaped."""
    return Markup("".join(child if isinstance(child, Markup) else escape(child) for child in children))


def element(name: str, *children: str, **attributes: str) -> Markup:
    """One element. A trailing underscore of an attribute is dropped (`class_`), inner ones become hyphens (`aria_label`)."""
    shown = "".join(f' {key.rstrip("_").replace("_", "-")}="{escape(value)}"' for key, value in attributes.items())
    return Markup(f"<{name}{shown}>{join(*children)}</{name}>")
