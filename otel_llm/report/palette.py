"""One colour per phase, the same in every table and chart; told apart with any colour vision."""

from __future__ import annotations

from typing import Final

COLOURS: Final = {
    "accept": "#8c95a4",
    "network": "#c2577e",
    "preprocess": "#7fb2e5",
    "queue": "#e0a030",
    "prefill": "#2f6fc4",
    "decode": "#1f9d8a",
    "postprocess": "#8a6bbe",
    "unsplit": "#c9ced6",
}
"""By phase, as CSS colours."""


def milliseconds(nanoseconds: float) -> str:
    """Three significant digits, in milliseconds without the unit."""
    value = nanoseconds / 1e6
    for limit, digits in ((0.9995, 3), (9.995, 2), (99.95, 1)):
        if value < limit:
            return f"{value:.{digits}f}"
    return f"{value:,.0f}"
