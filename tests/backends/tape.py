"""What services export, kept as it came, to be given to any backend later."""

from __future__ import annotations

import urllib.request

import grpc
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2_grpc import MetricsServiceStub

from otel_llm.report.receiver import Receiver


class Tape(Receiver):
    """A receiver that keeps the messages of metrics too, in the order of their arrival."""

    def __init__(self) -> None:
        super().__init__()
        self.metrics: list[bytes] = []

    def take_metrics(self, body: bytes) -> None:
        self.metrics.append(body)
        super().take_metrics(body)

    def messages(self) -> list[ExportMetricsServiceRequest]:
        return [ExportMetricsServiceRequest.FromString(body) for body in self.metrics]

    def last_export(self, histogram: str) -> float:
        """When it was last exported, seconds since the epoch; databases keep whole milliseconds of it."""
        return max(
            point.time_unix_nano // 10**6 / 1000
            for message in self.messages()
            for resource in message.resource_metrics
            for scope in resource.scope_metrics
            for metric in scope.metrics
            if metric.name == histogram
            for point in metric.histogram.data_points
        )

    def play_http(self, url: str) -> None:
        """To a URL that takes metrics, OTLP over HTTP."""
        # Loopback: no proxy.
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        for body in self.metrics:
            headers = {"Content-Type": "application/x-protobuf"}
            with opener.open(urllib.request.Request(url, body, headers), timeout=30):
                pass

    def play_grpc(self, url: str) -> None:
        """To an OTLP/gRPC endpoint."""
        with grpc.insecure_channel(url.removeprefix("http://")) as channel:
            export = MetricsServiceStub(channel).Export
            for message in self.messages():
                export(message, timeout=30)
