"""What ``otel-llm doctor`` looks at."""

from __future__ import annotations

import os
import socket
from importlib.metadata import entry_points
from importlib.util import find_spec
from typing import NamedTuple
from urllib.parse import urlsplit

from otel_llm import config, engines, sanitize
from otel_llm.patching import Engine

_CONNECT_SECONDS = 2.0


class Finding(NamedTuple):
    """One line of the report."""

    subject: str
    ok: bool
    detail: str


def examine(*, load: bool) -> list[Finding]:
    """Look at engines, entry points and the collector; with ``load`` import the engines and resolve every hook."""
    return [*_engines(load=load), _plugin(), _enabled(), _collector()]


def _engines(*, load: bool) -> list[Finding]:
    found = []
    for name in engines.names():
        engine = engines.load(name)
        if find_spec(engine.package) is None:
            found.append(Finding(name, True, "not installed, nothing to do"))
        elif not load:
            found.append(Finding(name, True, "installed (otel-llm doctor --import resolves its hooks)"))
        else:
            found.append(_resolved(name, engine))
    return found


def _resolved(name: str, engine: Engine) -> Finding:
    from otel_llm.testing import missing_targets

    version = sanitize.text(getattr(__import__(engine.package), "__version__", "of unknown version"))
    missing = missing_targets(engine)
    if missing:
        return Finding(name, False, f"{version}: left untouched, it has no {', '.join(missing)}")
    return Finding(name, True, f"{version}: every hook resolves")


def _plugin() -> Finding:
    here = any(entry.name == "otel_llm" for entry in entry_points(group="vllm.general_plugins"))
    allowed = os.environ.get("VLLM_PLUGINS")
    if allowed is not None and "otel_llm" not in allowed.split(","):
        return Finding("vLLM plugin", False, "VLLM_PLUGINS is set and does not name otel_llm")
    return Finding("vLLM plugin", here, "installed" if here else "entry point missing: install otel-llm with pip")


def _enabled() -> Finding:
    on = config.flag(config.ENABLED)
    detail = "1: vLLM is instrumented without code" if on else "not set: instrumented by code or `otel-llm run` only"
    return Finding(config.ENABLED, True, detail)


def _collector() -> Finding:
    protocol = os.environ.get("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc")
    endpoint = os.environ.get("OTEL_EXPORTER_OTLP_ENDPOINT") or (
        "http://localhost:4317" if protocol == "grpc" else "http://localhost:4318"
    )
    try:
        url = urlsplit(endpoint if "//" in endpoint else f"//{endpoint}")
        port = url.port or (443 if url.scheme == "https" else 4317 if protocol == "grpc" else 80)
    except ValueError:
        return Finding("collector", False, "OTEL_EXPORTER_OTLP_ENDPOINT is no address")
    # Host and port only: the URL may hold credentials.
    place = f"{url.hostname}:{port} ({protocol})"
    try:
        socket.create_connection((url.hostname or "localhost", port), _CONNECT_SECONDS).close()
    except OSError as error:
        return Finding("collector", False, f"{place}: {error.strerror or type(error).__name__}")
    except ValueError:  # no name of a host has such characters, or so many
        return Finding("collector", False, f"{place}: no such host")
    return Finding("collector", True, f"{place}: accepts connections")
