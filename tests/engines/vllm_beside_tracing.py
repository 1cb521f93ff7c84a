"""
A program: an application with a tracer provider of its own, and vLLM without and with its own tracing.

Arguments: the model, and a file that takes the spans by stage, as JSON.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

import otel_llm


def provider() -> tuple[TracerProvider, InMemorySpanExporter]:
    exporter, made = InMemorySpanExporter(), TracerProvider()
    made.add_span_processor(SimpleSpanProcessor(exporter))
    return made, exporter


def engine(model: str, **options: Any) -> Any:
    from vllm import LLM

    options |= {"enforce_eager": True, "dtype": "float32", "max_model_len": 256, "block_size": 32}
    return LLM(model=model, served_model_name="tiny", **options)


def generate(llm: Any) -> None:
    from vllm import SamplingParams

    params = SamplingParams(max_tokens=3, temperature=0.5, top_p=0.9, ignore_eos=True)
    llm.generate(["A request waits"], params, use_tqdm=False)


def main(model: str, result: str) -> None:
    stages: dict[str, list[dict[str, Any]]] = {}

    def stage(name: str, exporter: InMemorySpanExporter) -> None:
        spans = [json.loads(span.to_json()) for span in exporter.get_finished_spans()]
        stages[name] = [{"name": span["name"], "attributes": span["attributes"]} for span in spans]
        exporter.clear()

    ours, seen = provider()
    trace.set_tracer_provider(ours)
    otel_llm.instrument(engines=["vllm"])
    unasked = engine(model)
    stage("start, tracing not asked for", seen)
    generate(unasked)
    stage("request, tracing not asked for", seen)
    llm = engine(model, otlp_traces_endpoint="http://127.0.0.1:9")
    stage("start, tracing asked for", seen)
    generate(llm)
    stage("request, tracing asked for", seen)

    otel_llm.uninstrument()
    generate(llm)
    stage("request, not instrumented", seen)
    other, elsewhere = provider()
    otel_llm.instrument(engines=["vllm"], tracer_provider=other)
    generate(llm)
    stage("request, vLLM's provider", seen)
    stage("request, a provider of its own", elsewhere)
    Path(result).write_text(json.dumps(stages))
    del unasked  # not before: it would take the groups of its successor with it


if __name__ == "__main__":
    main(*sys.argv[1:])
