"""
Spans straight to the bytes of OTLP.

The SDK's way makes an object per span, a message per object and bytes of the
message, some 70 µs for each. What leaves is the same, byte for byte
(tests/unit/test_deferred_spans.py); whatever is out of the ordinary goes the
SDK's way. https://protobuf.dev/programming-guides/encoding/,
opentelemetry/proto/trace/v1/trace.proto.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping
from functools import lru_cache
from types import MappingProxyType
from typing import Any

from opentelemetry.exporter.otlp.proto.common.trace_encoder import encode_spans
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.sdk.trace import ReadableSpan, SpanLimits, TracerProvider
from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult
from opentelemetry.trace import Link, SpanContext, SpanKind

from otel_llm.pipeline.replay import Replay
from otel_llm.pipeline.spans import Decided
from otel_llm.span_data import SpanData, Value

_ATTRIBUTES_KEPT = 128
"""The SDK's own limit per span, if none is set."""

_INTERNAL = b"\x30\x01"
_CONSTANTS_KEPT = 1000
_KINDS = {SpanKind.INTERNAL: _INTERNAL, SpanKind.SERVER: b"\x30\x02", SpanKind.CLIENT: b"\x30\x03"}
_UNSET, _ERROR = b"\x7a\x00", b"\x7a\x02\x18\x02"
_PARENT_HERE, _PARENT_REMOTE = b"\x85\x01\x00\x01\x00\x00", b"\x85\x01\x00\x03\x00\x00"
_LEAF = _UNSET + _PARENT_HERE
_TIMES = struct.Struct("<cQcQ").pack
_DOUBLE = struct.Struct("<d").pack


class Encoder:
    """Encodes for one thread."""

    def __init__(self, provider: TracerProvider) -> None:
        self._ids = provider.id_generator
        self._replay = Replay(provider)
        limits = SpanLimits()
        self._unlimited = limits.max_span_attribute_length is None and (
            limits.max_span_attributes is None or limits.max_span_attributes >= _ATTRIBUTES_KEPT
        )
        self._constants: dict[int, tuple[object, bytes]] = {}
        self._heads: dict[str, tuple[bytes, bytes]] = {}

    def spans(self, decided: Decided, sendable: Callable[[ReadableSpan], bool]) -> tuple[list[bytes], int]:
        """All spans of one request, encoded, and the number of those that cannot be."""
        if self._unlimited and decided.scope in self._heads:
            try:
                return self._direct(decided), 0
            except (struct.error, TypeError, OverflowError, UnicodeError):
                pass  # something odd in it: the SDK knows what to do, or leaves it out
        made = self._replay.spans(decided)
        good = [span for span in made if sendable(span)]
        request = encode_spans(good)
        self._learn(decided.scope, request)
        found = [s for r in request.resource_spans for scope in r.scope_spans for s in scope.spans]
        return [_field(b"\x12", span.SerializeToString()) for span in found], len(made) - len(good)

    def request(self, scope: str, spans: list[bytes]) -> bytes:
        """One message with all these spans of a scope that has been encoded before."""
        resource, head = self._heads[scope]
        size = len(head) + sum(map(len, spans))
        opening = b"\x12" + _varint(size)
        # Joined once: of some 100 KB every copy more stays in what the allocator has of the process.
        return b"".join((b"\x0a", _varint(len(resource) + len(opening) + size), resource, opening, head, *spans))

    def _learn(self, scope: str, request: ExportTraceServiceRequest) -> None:
        """Take what is the same for all spans from what the SDK made of some."""
        for resource in request.resource_spans:
            (first,) = resource.scope_spans
            # Their schema URLs would come after the spans; a provider and a scope of ours have none.
            head = b"" if not first.HasField("scope") else _field(b"\x0a", first.scope.SerializeToString())
            self._heads[scope] = (_field(b"\x0a", resource.resource.SerializeToString()), head)

    def _direct(self, decided: Decided) -> list[bytes]:
        found: list[bytes] = []
        span, parent, data = decided.context, decided.parent, decided.describe()
        if decided.added:
            data = data._replace(attributes={**data.attributes, **decided.added})
        ids = b"\x0a\x10" + span.trace_id.to_bytes(16, "big") + b"\x12\x08"
        state = b"" if not span.trace_state else _text(b"\x1a", span.trace_state.to_header())
        above = b"" if parent is None else b"\x22\x08" + parent.span_id.to_bytes(8, "big")
        flags = _PARENT_REMOTE if parent is not None and parent.is_remote else _PARENT_HERE
        links = b"".join(_link(link) for link in decided.links)
        self._span(found, ids, span.span_id, state, above, data, _KINDS[decided.kind], links, flags)
        return found

    def _span(
        self,
        found: list[bytes],
        ids: bytes,
        own: int,
        state: bytes,
        above: bytes,
        data: SpanData,
        kind: bytes,
        links: bytes = b"",
        flags: bytes = _PARENT_HERE,
    ) -> None:
        if not 0 <= data.start <= data.end < 1 << 63:
            raise OverflowError
        mine = own.to_bytes(8, "big")
        head = ids + mine + state + above + _text(b"\x2a", data.name) + kind
        body = _TIMES(b"\x39", data.start, b"\x41", data.end) + _attributes(data.attributes) + links
        below = state + b"\x22\x08" + mine
        for child in data.children:
            child_id = self._ids.generate_span_id()
            if type(child.attributes) is MappingProxyType and 0 <= child.start <= child.end < 1 << 63:
                # One whose attributes never change, and nothing is below it: a phase.
                times = _TIMES(b"\x39", child.start, b"\x41", child.end)
                own_id, label = child_id.to_bytes(8, "big"), _text(b"\x2a", child.name)
                leaf = ids + own_id + below + label + _INTERNAL + times + self._constant(child.attributes) + _LEAF
                found.append(_field(b"\x12", leaf))
            else:
                self._span(found, ids, child_id, state, b"\x22\x08" + mine, child, _INTERNAL)
        found.append(_field(b"\x12", head + body + (_ERROR if data.failed else _UNSET) + flags))

    def _constant(self, attributes: MappingProxyType[str, Value]) -> bytes:
        kept = self._constants.get(id(attributes))
        if kept is None or kept[0] is not attributes:
            if len(self._constants) >= _CONSTANTS_KEPT:
                self._constants.clear()
            kept = self._constants[id(attributes)] = (attributes, _attributes(attributes))
        return kept[1]


def sender(exporter: SpanExporter) -> Callable[[bytes, int], SpanExportResult] | None:
    """How this exporter is given what is encoded already; None if it takes spans alone."""
    module = type(exporter).__module__
    if module == "opentelemetry.exporter.otlp.proto.http.trace_exporter":
        post = getattr(getattr(exporter, "_client", None), "export", None)
        return None if post is None else lambda body, _: _result(post(body).success)
    if module == "opentelemetry.exporter.otlp.proto.grpc.trace_exporter":
        parts = [getattr(exporter, name, None) for name in ("_translate_data", "_count_data", "_export")]
        if all(map(callable, parts)):
            return _over_grpc(exporter)
    return None


def _over_grpc(exporter: Any) -> Callable[[bytes, int], SpanExportResult]:
    """The exporter with its retries, only the step that makes a message of spans is replaced."""
    counts: list[int] = [0]
    vars(exporter).update(_translate_data=ExportTraceServiceRequest.FromString, _count_data=lambda _: counts[0])

    def send(body: bytes, count: int) -> SpanExportResult:
        counts[0] = count
        result: SpanExportResult = exporter._export(body)  # private, see docs/adr/0008
        return result

    return send


def _result(success: bool) -> SpanExportResult:
    return SpanExportResult.SUCCESS if success else SpanExportResult.FAILURE


def _varint(number: int) -> bytes:
    return _LENGTHS[number] if number < len(_LENGTHS) else _long_varint(number)


def _long_varint(number: int) -> bytes:
    parts = bytearray()
    while number >= 0x80:
        parts.append(number & 0x7F | 0x80)
        number >>= 7
    parts.append(number)
    return bytes(parts)


_LENGTHS = tuple(_long_varint(number) for number in range(2048))


def _field(tag: bytes, content: bytes) -> bytes:
    return tag + _varint(len(content)) + content


@lru_cache(maxsize=1024)
def _text(tag: bytes, value: str) -> bytes:
    return _field(tag, value.encode())


@lru_cache(maxsize=1024)
def _string(key: str, value: str) -> bytes:
    return _attribute(key, _text(b"\x0a", value))


@lru_cache(maxsize=256)
def _before_double(key: str) -> bytes:
    return _attribute(key, b"\x21" + bytes(8))[:-8]


@lru_cache(maxsize=1024)
def _whole(key: str, value: int) -> bytes:
    if not -(1 << 63) <= value < 1 << 63:
        raise OverflowError
    return _attribute(key, b"\x18" + _varint(value & (1 << 64) - 1))


@lru_cache(maxsize=256)
def _several(key: str, values: tuple[str, ...]) -> bytes:
    return _attribute(key, _field(b"\x2a", b"".join(_field(b"\x0a", _text(b"\x0a", value)) for value in values)))


def _attribute(key: str, value: bytes) -> bytes:
    return _field(b"\x4a", _text(b"\x0a", key) + _field(b"\x12", value))


def _link(link: Link) -> bytes:
    span = link.context
    if link.attributes or not isinstance(span, SpanContext):
        raise TypeError(link)
    ids = b"\x0a\x10" + span.trace_id.to_bytes(16, "big") + b"\x12\x08" + span.span_id.to_bytes(8, "big")
    return _field(b"\x6a", ids + (b"\x35\x00\x03\x00\x00" if span.is_remote else b"\x35\x00\x01\x00\x00"))


def _attributes(attributes: Mapping[str, Value]) -> bytes:
    parts: list[bytes] = []
    for key, value in attributes.items():
        kind = type(value)
        if kind is str:
            parts.append(_string(key, value))
        elif kind is float:
            parts.append(_before_double(key) + _DOUBLE(value))
        elif kind is int:
            parts.append(_whole(key, value))
        elif kind is bool:
            parts.append(_attribute(key, b"\x10\x01" if value else b"\x10\x00"))
        elif kind is tuple:
            parts.append(_several(key, value))
        else:
            raise TypeError(kind)
    if len(parts) > _ATTRIBUTES_KEPT:
        raise OverflowError
    return b"".join(parts)
