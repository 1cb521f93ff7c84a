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

FOLDER = Path(__file__).resolve().parent
JSON = FOLDER / "json"
RULES = FOLDER.parent / "integrations" / "prometheus" / "otel-llm.rules.yml"

PAGES = (latency_throughput, queueing, slo, network, instances, load_test, caches)


def rendered() -> dict[str, str]:
    """Text of each JSON file by its name."""
    return {
        f"{page.UID}.json": json.dumps(page.build(), cls=JSONEncoder, indent=2, sort_keys=True) + "\n" for page in PAGES
    }


def rules() -> str:
    """Text of the rules file."""
    head = "# Built by grafana-dashboards/build.py from otel_llm/conventions.py.\n"
    body: str = yaml.safe_dump(alerts.build(), sort_keys=False, width=10_000)
    return head + body


def main() -> None:
    """Write what has changed, remove what is no longer built."""
    files = rendered()
    for stale in {path.name for path in JSON.glob("*.json")} - files.keys():
        (JSON / stale).unlink()
    for name, content in files.items():
        (JSON / name).write_text(content, encoding="utf-8")
    RULES.write_text(rules(), encoding="utf-8")


if __name__ == "__main__":
    main()
