"""
Writes the dashboards as JSON, and the rules for Prometheus.

    python grafana-dashboards/build.py
"""

from __future__ import annotations

import json
from pathlib import Path

import alerts
import caches
import instances
import latency_throughput
import load_test
import network
import queueing
import slo
import yaml
from grafana_foundation_sdk.cog.encoder import JSONEncoder

from otel_llm.dashboards import native_histograms

FOLDER = Path(__file__).resolve().parent
JSON = FOLDER / "json"
RULES = FOLDER.parent / "integrations" / "prometheus"

PAGES = (latency_throughput, queueing, slo, network, instances, load_test, caches)


def rendered() -> dict[str, str]:
    """Text of each JSON file by its name."""
    return {
        f"{page.UID}.json": json.dumps(page.build(), cls=JSONEncoder, indent=2, sort_keys=True) + "\n" for page in PAGES
    }


def rules() -> dict[str, str]:
    """Text of each rules file by its name: for explicit histograms, and for native ones."""
    head = "# Built by grafana-dashboards/build.py from otel_llm/conventions.py.\n"
    explicit, native = alerts.build(), alerts.build()
    for group in native["groups"]:
        for rule in group["rules"]:
            rule["expr"] = native_histograms(rule["expr"])
    files = {"otel-llm.rules.yml": explicit, "otel-llm-native.rules.yml": native}
    return {name: head + yaml.safe_dump(body, sort_keys=False, width=10_000) for name, body in files.items()}


def main() -> None:
    """Write what has changed, remove what is no longer built."""
    files = rendered()
    for stale in {path.name for path in JSON.glob("*.json")} - files.keys():
        (JSON / stale).unlink()
    for name, content in files.items():
        (JSON / name).write_text(content, encoding="utf-8")
    for name, content in rules().items():
        (RULES / name).write_text(content, encoding="utf-8")


if __name__ == "__main__":
    main()
