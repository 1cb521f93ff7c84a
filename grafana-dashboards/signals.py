"""
The signals that dashboards and rules are made of, as PromQL.

Metric names, label names and label values come from ``otel_llm.conventions``
and nowhere else: a name that is not declared there raises KeyError, a value
outside a closed set ValueError.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Final

from otel_llm.client_timeline import CLIENT_PHASES
from otel_llm.conventions import ATTRIBUTES, INSTRUMENTS, RESOURCE, Instrument
from otel_llm.timeline import PHASES, UNSPLIT

RATE_INTERVAL: Final = "$__rate_interval"

# Unit suffixes of the OTLP to Prometheus translation; a unit in braces is a remark and adds nothing.
_UNIT_SUFFIX: Final = {"s": "_seconds", "By": "_bytes"}


def prometheus_name(instrument: Instrument) -> str:
    """Name under which OTLP and scrape store the metric, without the parts of a histogram."""
    unit = instrument.unit
    suffix = "" if unit.startswith("{") else _UNIT_SUFFIX[unit]
    total = "_total" if instrument.kind.endswith("counter") else ""
    return instrument.name.replace(".", "_") + suffix + total


def label(attribute: str) -> str:
    """Label under which an attribute, of a metric or of its resource, is stored."""
    row = ATTRIBUTES[attribute] if attribute in ATTRIBUTES else RESOURCE[attribute]
    return row.name.replace(".", "_")


SERVER, CLIENT = "", "client_"
"""
Whose job and instance the variables choose, as prefix of their names.

A client is another service than the server that it calls: links between
dashboards must not carry the choice of one over to the other.
"""


def process_matchers(side: str) -> tuple[str, ...]:
    """Matchers on what every metric has. VictoriaMetrics has neither label: ``.*`` matches their absence."""
    return f'job=~"${side}job"', f'instance=~"${side}instance"'


REQUEST: Final = (
    f'{label("gen_ai.provider.name")}=~"$engine"',
    f'{label("gen_ai.request.model")}=~"$model"',
)
"""Matchers on what every metric of requests has."""


@dataclass(frozen=True)
class Metric:
    """An instrument, the matchers on its series, and the window of its rates."""

    instrument: Instrument
    matchers: tuple[str, ...]
    window: str = RATE_INTERVAL
    offset: str = ""

    def where(self, attribute: str, value: str, operator: str = "=") -> Metric:
        """Only the series with this value; the attribute must be one of the instrument's."""
        row = ATTRIBUTES[attribute]
        if attribute not in self.instrument.attributes:
            raise ValueError(f"{self.instrument.name} has no attribute {attribute}")
        if row.values and value and value not in row.values:
            raise ValueError(f"{value} is no value of {attribute}")
        return replace(self, matchers=(*self.matchers, f'{label(attribute)}{operator}"{value}"'))

    def of_run(self, variable: str) -> Metric:
        """Only the series of the runs that a variable of the dashboard chooses."""
        return replace(self, matchers=(*self.matchers, f'{RUN_LABEL}=~"${variable}"'))

    def over(self, window: str) -> Metric:
        """Rates over a fixed window instead of the dashboard's."""
        return replace(self, window=window)

    def before(self, offset: str) -> Metric:
        """The same, that much earlier."""
        return replace(self, offset=f" offset {offset}")

    def everywhere(self) -> Metric:
        """Without the dashboard's variables, for rules."""
        return replace(self, matchers=tuple(m for m in self.matchers if "$" not in m))

    def average(self, *by: str) -> str:
        """Mean over the window, of a gauge, added up over engines; of several that tell of one, the highest."""
        return f"sum{_group(by)}({self.highest(*_ONE_ENGINE, *by)})"

    def highest(self, *by: str) -> str:
        """The highest of engines' means over the window, of a gauge."""
        return f"max{_group(by)}(avg_over_time({self._series('')}))"

    def rate(self, *by: str) -> str:
        """Per second, of a counter."""
        return self._rate("", by)

    def sum_rate(self, *by: str) -> str:
        """
        Seconds recorded per second, of a histogram.

        By Little's law this is the mean number of requests in what is measured.
        """
        return self._rate("_sum", by)

    def count_rate(self, *by: str) -> str:
        """Measurements per second, of a histogram."""
        return self._rate("_count", by)

    def mean(self, *by: str) -> str:
        """Mean over the measurements in the window, of a histogram."""
        return f"{self.sum_rate(*by)} / {self.count_rate(*by)}"

    def quantile(self, quantile: float, *by: str) -> str:
        """Estimated from the buckets of a histogram."""
        return f"histogram_quantile({quantile}, {self._rate('_bucket', ('le', *by))})"

    def seen_within(self, window: str, *by: str) -> str:
        """Number of series, of a counter, that had a sample in the window."""
        return f"count by ({', '.join(by)}) (last_over_time({self.over(window)._series('')}))"

    def buckets(self) -> str:
        """Measurements per bucket in the window, for a heatmap."""
        return f"sum by (le) (increase({self._series('_bucket')}))"

    def share_within(self, bound: str, *by: str) -> str:
        """
        Share of measurements up to a bound, of a histogram.

        ``bound`` is a bucket bound, written as in the bucket list, or a variable whose values are.
        """
        if not bound.startswith("$"):
            self.check_bound(bound)
        within = replace(self, matchers=(*self.matchers, f'le="{bound}"'))
        return f"{within._rate('_bucket', by)} / {self.count_rate(*by)}"

    def check_bound(self, bound: str) -> str:
        """Return a bucket bound of this histogram. Raises ValueError for any other."""
        if bound not in map(repr, self.instrument.buckets):
            raise ValueError(f"{bound} is no bucket bound of {self.instrument.name}")
        return bound

    def _rate(self, part: str, by: tuple[str, ...]) -> str:
        return f"sum{_group(by)}(rate({self._series(part)}))"

    def _series(self, part: str) -> str:
        name = prometheus_name(self.instrument) + part
        matchers = f"{{{', '.join(self.matchers)}}}" if self.matchers else ""
        return f"{name}{matchers}[{self.window}]{self.offset}"


_ONE_ENGINE: Final = (label("otel_llm.engine.id"), label("otel_llm.engine.index"))


def _group(by: tuple[str, ...]) -> str:
    return f" by ({', '.join(by)}) " if by else ""


def _metric(name: str, side: str = SERVER) -> Metric:
    instrument = INSTRUMENTS[name]
    of_requests = "gen_ai.request.model" in instrument.attributes
    return Metric(instrument, process_matchers(side) + (REQUEST if of_requests else ()))


DURATION: Final = _metric("gen_ai.server.request.duration")
FIRST_TOKEN: Final = _metric("gen_ai.server.time_to_first_token")
PER_OUTPUT_TOKEN: Final = _metric("gen_ai.server.time_per_output_token")
BETWEEN_TOKENS: Final = _metric("otel_llm.request.inter_token_latency")
PHASE: Final = _metric("otel_llm.request.phase.duration")
CLIENT_DURATION: Final = _metric("gen_ai.client.operation.duration", CLIENT)
FIRST_CHUNK: Final = _metric("gen_ai.client.operation.time_to_first_chunk", CLIENT)
CLIENT_PHASE: Final = _metric("otel_llm.client.phase.duration", CLIENT)
NETWORK: Final = _metric("otel_llm.network.duration", CLIENT)
SLO: Final = _metric("otel_llm.request.slo")
ERRORS: Final = _metric("otel_llm.telemetry.errors")
EXPORTED: Final = _metric("otel_llm.telemetry.exported")
DROPPED: Final = _metric("otel_llm.telemetry.dropped")
CAPPED: Final = _metric("otel_llm.telemetry.capped")

_REQUESTS: Final = _metric("otel_llm.engine.requests")
WAITING: Final = _REQUESTS.where("otel_llm.state", "waiting")
RUNNING: Final = _REQUESTS.where("otel_llm.state", "running")
KV_CACHE: Final = _metric("otel_llm.engine.kv_cache.usage")
LOOKED_UP: Final = _metric("otel_llm.engine.prefix_cache.queries")
FOUND: Final = _metric("otel_llm.engine.prefix_cache.hits")
PREEMPTIONS: Final = _metric("otel_llm.engine.preemptions")
DRAFTED: Final = _metric("otel_llm.engine.speculation.drafted")
ACCEPTED: Final = _metric("otel_llm.engine.speculation.accepted")
BATCH: Final = _metric("otel_llm.engine.batch.size")
STEP_TOKENS: Final = _metric("otel_llm.engine.step.tokens")
STEP_DURATION: Final = _metric("otel_llm.engine.step.duration")
COMPUTED_TOKENS: Final = _metric("otel_llm.engine.computed_tokens")

_TOKENS: Final = _metric("otel_llm.request.tokens")
INPUT_TOKENS: Final = _TOKENS.where("gen_ai.token.type", "input")
CACHED_TOKENS: Final = _TOKENS.where("gen_ai.token.type", "cached_input")
OUTPUT_TOKENS: Final = _TOKENS.where("gen_ai.token.type", "output")

FAILED: Final = DURATION.where("error.type", "", "!=")
CLIENT_FAILED: Final = CLIENT_DURATION.where("error.type", "", "!=")
GOOD: Final = SLO.where("otel_llm.slo.met", "true")
BAD: Final = SLO.where("otel_llm.slo.met", "false")

PHASE_ORDER: Final = (*PHASES, UNSPLIT)
CLIENT_PHASE_ORDER: Final = CLIENT_PHASES
PHASE_LABEL: Final = label("otel_llm.phase")
METHOD_LABEL: Final = label("otel_llm.network.method")
CAUSE_LABEL: Final = label("otel_llm.slo.cause")
MODEL_LABEL: Final = label("gen_ai.request.model")
ENGINE_LABEL: Final = label("otel_llm.engine.index")
RUN_LABEL: Final = label("otel_llm.run.id")

INSTANCE: Final = ("instance", "service_instance_id")
"""What tells instances apart: the first on Prometheus, the second on VictoriaMetrics."""


def phase(name: str) -> Metric:
    """The time of requests in one phase."""
    return PHASE.where("otel_llm.phase", name)


def client_phase(name: str) -> Metric:
    """The time of clients' attempts in one part."""
    return CLIENT_PHASE.where("otel_llm.phase", name)


def engine_requests() -> str:
    """Requests that the engines hold by their own count; nothing where no engine tells."""
    return f"{WAITING.average()} + {RUNNING.average()}"


def share_by_phase() -> str:
    """
    Share of each phase in the time of all requests.

    The explicit matching is for Prometheus, which matches nothing without it.
    """
    return f"{PHASE.sum_rate(PHASE_LABEL)} / on () group_left () {PHASE.sum_rate()}"
