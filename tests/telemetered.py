"""OpenTelemetry's own in-memory readers, set up once in a process: its providers cannot be replaced."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache

from opentelemetry import metrics, trace
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import HistogramDataPoint, InMemoryMetricReader, NumberDataPoint
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

Attributes = frozenset[tuple[str, object]]
OURS = "fastapi_otpless_session"


@dataclass
class Telemetry:
    """What was measured and traced since the test began."""

    reader: InMemoryMetricReader = field(default_factory=InMemoryMetricReader)
    exporter: InMemorySpanExporter = field(default_factory=InMemorySpanExporter)
    _before: dict[str, dict[Attributes, float]] = field(default_factory=dict)

    def begin(self) -> None:
        self._before = self._now()
        self.exporter.clear()

    def counts(self, name: str) -> dict[Attributes, float]:
        """Return how a metric grew, by its attributes; of a histogram, how many values it took."""
        before = self._before.get(name, {})
        grown = {key: value - before.get(key, 0) for key, value in self._now().get(name, {}).items()}
        return {key: value for key, value in grown.items() if value}

    def count(self, name: str, **attributes: str) -> float:
        return self.counts(name).get(frozenset(attributes.items()), 0)

    def gauge(self, name: str) -> float:
        [value] = self._now()[name].values()
        return value

    def names(self) -> set[str]:
        return set(self._now())

    def spans(self, name: str) -> list[ReadableSpan]:
        return [span for span in self.all_spans() if span.name == name]

    def all_spans(self) -> list[ReadableSpan]:
        """Return the spans of ours, in the order in which they ended."""
        return [each for each in self.exporter.get_finished_spans() if _is_ours(each)]

    def told(self) -> str:
        """Return everything as text."""
        return f"{self.reader.get_metrics_data()}\n" + "\n".join(
            span.to_json() for span in self.exporter.get_finished_spans()
        )

    def _now(self) -> dict[str, dict[Attributes, float]]:
        found: dict[str, dict[Attributes, float]] = {}
        data = self.reader.get_metrics_data()
        for resource in data.resource_metrics if data else ():
            for scope in resource.scope_metrics:
                for metric in scope.metrics if scope.scope.name == OURS else ():
                    for point in metric.data.data_points:
                        found.setdefault(metric.name, {})[_attributes(point.attributes)] = _value(point)
        return found


def _attributes(attributes: Mapping[str, object] | None) -> Attributes:
    return frozenset((attributes or {}).items())


def _value(point: object) -> float:
    assert isinstance(point, NumberDataPoint | HistogramDataPoint)
    return point.value if isinstance(point, NumberDataPoint) else point.count


def _is_ours(span: ReadableSpan) -> bool:
    return span.instrumentation_scope is not None and span.instrumentation_scope.name == OURS


@cache
def telemetry_of_process() -> Telemetry:
    """Return the process's, set up on first use."""
    telemetry = Telemetry()
    metrics.set_meter_provider(MeterProvider([telemetry.reader]))
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(telemetry.exporter))
    trace.set_tracer_provider(provider)
    return telemetry
