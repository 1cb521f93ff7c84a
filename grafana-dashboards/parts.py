"""Panels that several pages have, each with signals of its own."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, NamedTuple

from panels import QUANTILE_COLOURS, Panel, Target, density, number, plane, time_series
from signals import BETWEEN_TOKENS, DURATION, FIRST_TOKEN, PER_OUTPUT_TOKEN, Metric

from otel_llm.report.palette import COLOURS


class Measured(NamedTuple):
    """A latency, under the name that panels give it and in words."""

    name: str
    metric: Metric
    what: str

    @property
    def title(self) -> str:
        """The name, to begin a title with."""
        return self.name[:1].upper() + self.name[1:]


TTFT: Final = Measured("TTFT", FIRST_TOKEN, "time to first token")
TPOT: Final = Measured("TPOT", PER_OUTPUT_TOKEN, "time per output token")
ITL: Final = Measured("ITL", BETWEEN_TOKENS, "inter-token latency")
END_TO_END: Final = Measured("end to end", DURATION, "request duration")


def quantile_lines(measured: Measured, *, reading: str, **shape: int) -> Panel:
    """p50, p95 and p99 over time."""
    return time_series(
        f"{measured.title}: quantiles",
        [Target(measured.metric.quantile(int(text[1:]) / 100), text) for text in QUANTILE_COLOURS],
        unit="s",
        colours=QUANTILE_COLOURS,
        formula=f"quantiles of {measured.what}, estimated from buckets.",
        reading=reading,
        **shape,
    )


def distribution(measured: Measured, *, reading: str, unit: str = "s", **shape: int) -> Panel:
    """A heatmap of the buckets."""
    return density(
        f"{measured.title}: distribution",
        Target(measured.metric.buckets(), "{{le}}"),
        unit=unit,
        formula=f"measurements per bucket of {measured.what} in each window.",
        reading=reading,
        **shape,
    )


def against(measured: Measured, x: Target, x_unit: str, *, reading: str, **shape: int) -> Panel:
    """Mean and 95th percentile of a latency over something else, which the legend of ``x`` names."""
    return plane(
        f"{measured.title} against {x.legend}",
        [(x, Target(measured.metric.mean(), "mean")), (x, Target(measured.metric.quantile(0.95), "p95"))],
        unit="s",
        x_title=x.legend,
        x_unit=x_unit,
        colours={"mean": QUANTILE_COLOURS["p50"], "p95": QUANTILE_COLOURS["p95"]},
        formula=f"mean and 95th percentile of {measured.what} against {x.legend}.",
        reading=reading,
        **shape,
    )


def mean_stack(
    title: str,
    part: Callable[[str], Metric],
    order: Sequence[str],
    whole: Metric,
    measured: str,
    *,
    of: str = "requests",
    total: Metric | None = None,
    colours: Mapping[str, str] = COLOURS,
    **words: Any,
) -> Panel:
    """
    Mean time by phase, stacked; dashed and named ``measured``: the mean of the whole.

    ``whole`` counts what the time is divided by; ``total`` is what is dashed, if that is another metric.
    """
    return time_series(
        title,
        [
            *(Target(f"{part(name).sum_rate()} / {whole.count_rate()}", name) for name in order),
            Target((total or whole).mean(), measured),
        ],
        unit="s",
        stacked="normal",
        colours=colours,
        dashed=measured,
        formula=f"per phase: sum of its time / number of {of}. Dashed: {measured}, mean.",
        **words,
    )


def share_stack(
    title: str,
    part: Callable[[str], Metric],
    order: Sequence[str],
    whole: Metric,
    *,
    colours: Mapping[str, str] = COLOURS,
    **words: Any,
) -> Panel:
    """Share of each phase in the sum of ``whole``."""
    return time_series(
        title,
        [Target(f"{part(name).sum_rate()} / {whole.sum_rate()}", name) for name in order],
        unit="percentunit",
        stacked="percent",
        colours=colours,
        formula="sum of the phase's time / sum of all of it.",
        **words,
    )


def p95(measured: Measured, *, reading: str, width: int = 3) -> Panel:
    """The newest 95th percentile, large."""
    return number(
        f"p95 {measured.name}",
        Target(measured.metric.quantile(0.95), measured.name),
        unit="s",
        formula=f"95th percentile of {measured.what}, estimated from buckets.",
        reading=reading,
        width=width,
    )
