"""An HTML document of natdeploy: one file that needs nothing from anywhere, or a page of `natdeploy serve`."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from functools import cache
from hashlib import sha256
from importlib import resources

from natdeploy.report.axes import ERROR, LATENCY, Axis
from natdeploy.report.figures import Figure
from natdeploy.report.markup import Markup, element, join

# The browser itself then refuses whatever would leave the page; plotly draws with inline styles and saves images through blobs.
_POLICY = "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data: blob:"
SERVED_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; img-src data: blob:; connect-src 'self'; "
    "form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
)
"""That of the server's pages, whose scripts are files of their own, and which ask the server for what is new."""
RELOAD_S = 10
"""After which a browser without JavaScript loads a page again that changes by itself."""


def document(
    title: str,
    body: Markup,
    figures: Mapping[str, Figure],
    axes: Mapping[str, Axis],
    *,
    served: bool = False,
    changing: bool = False,
) -> str:
    """The text of a document.

    Args:
        title: of the window.
        body: what is to be seen.
        figures: by the id of their place in the body.
        axes: what the axes of the figure `front` can show.
        served: by natdeploy's server, from which the page then takes its scripts, and whether anything changed.
        changing: by itself.
    """
    data = [_json("figures", figures), _json("axes", {name: asdict(axis) for name, axis in axes.items()})]
    if served:
        head = [Markup('<link rel="icon" href="data:,"><link rel="stylesheet" href="/assets/page.css">')]
        if changing:
            head.append(Markup(f'<noscript><meta http-equiv="refresh" content="{RELOAD_S}"></noscript>'))
        scripts = [*data, *(element("script", src=f"/assets/{name}") for name in ("plotly.js", "page.js", "live.js"))]
    else:
        head = [Markup(f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">'), element("style", asset("page.css"))]
        scripts = [*data, element("script", asset("plotly.js")), element("script", asset("page.js"))] if figures else []
    meta = Markup('<meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">')
    inner = join(meta, *head, element("title", f"{title} · natdeploy"))
    shown = join(body, *scripts)
    version = f' data-version="{sha256(shown.encode(errors="replace")).hexdigest()[:16]}"' if served else ""
    return f'<!doctype html>\n<html lang="en"{version}>\n<head>{inner}</head>\n<body>\n{shown}\n</body>\n</html>\n'


@cache
def asset(name: str) -> Markup:
    """A style sheet or script by its name."""
    if name == "plotly.js":
        from plotly.offline import get_plotlyjs

        return Markup(get_plotlyjs())
    return Markup(resources.files("natdeploy.report").joinpath(name).read_text(encoding="utf-8"))


def _json(name: str, value: object) -> Markup:
    # Inside a script element only "</" and "<!--" could end or hide anything; no "<" is left that could begin either.
    text = json.dumps(value, allow_nan=False).replace("<", "\\u003c")
    return element("script", Markup(text), type="application/json", id=name)


# ---- parts that several pages have


def section(title: str, *children: str, class_: str = "") -> Markup:
    return element("section", element("h2", title), *children, class_=class_)


def plot(name: str) -> Markup:
    """The place of a figure."""
    undrawn = element("p", "The plot needs JavaScript; its numbers are in the table.", class_="note undrawn")
    return join(element("div", id=name, class_="plot"), undrawn)


def selects(axes: Mapping[str, Axis]) -> Markup:
    """What the two axes of the front show."""

    def select(name: str, label: str, chosen: str) -> Markup:
        options = (
            element("option", axis.title, value=key, **({"selected": ""} if key == chosen else {})) for key, axis in axes.items()
        )
        return element("label", label, element("select", *options, id=name))

    return element("div", select("across", "across ", LATENCY), select("up", "up ", ERROR), class_="axes")
