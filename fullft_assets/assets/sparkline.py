"""A curve small enough that Dagster's UI shows it inline; larger pictures collapse to a link there."""

import base64
from collections.abc import Sequence

import dagster as dg

_WIDTH, _HEIGHT = 300, 60
#: Points drawn: about 40 keep the SVG below the 700 bytes that render inline.
_POINTS = 40


def sparkline(values: Sequence[float], caption: str) -> dg.MetadataValue:
    """Return Markdown with an inline SVG of a curve, its first and last value in the caption."""
    step = max(1, -(-len(values) // _POINTS))
    drawn = [*values[:-1:step], values[-1]]
    low, high = min(drawn), max(drawn)
    span = (high - low) or 1.0
    points = " ".join(
        f"{i * _WIDTH / max(1, len(drawn) - 1):.0f},{_HEIGHT - 4 - (value - low) / span * (_HEIGHT - 8):.0f}"
        for i, value in enumerate(drawn)
    )
    svg = (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{_WIDTH}" height="{_HEIGHT}">'
        f'<polyline fill="none" stroke="#1f77b4" stroke-width="2" points="{points}"/></svg>'
    )
    picture = base64.b64encode(svg.encode()).decode()
    return dg.MetadataValue.md(
        f"{caption}: {values[0]:.3g} to {values[-1]:.3g}\n\n![{caption}](data:image/svg+xml;base64,{picture})"
    )
