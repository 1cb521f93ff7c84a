"""The set-up files for other programs: what can be checked without those programs."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from otel_llm.conventions import ATTRIBUTES, RESOURCE

ROOT = Path(__file__).resolve().parents[2]
GRAFANA = ROOT / "integrations" / "grafana"
COLLECTOR = ROOT / "integrations" / "otel-collector"
COMPOSE = [GRAFANA / "compose.yaml", GRAFANA / "one-container.yaml"]
COLLECTORS = sorted(COLLECTOR.glob("*.yaml"))


def read(path: Path) -> Any:
    return yaml.safe_load(path.read_text(encoding="utf-8"))


def services(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = read(path)["services"]
    return found


@pytest.mark.parametrize("path", COMPOSE, ids=lambda path: path.name)
def test_images_are_pinned_and_ports_are_on_loopback(path: Path) -> None:
    for service in services(path).values():
        assert re.search(r":v?\d+\.\d+\.\d+$", service["image"])
        assert all(port.startswith("127.0.0.1:") for port in service.get("ports", ()))


@pytest.mark.parametrize("path", COMPOSE, ids=lambda path: path.name)
def test_mounted_files_exist(path: Path) -> None:
    volumes = read(path).get("volumes", {})
    for service in services(path).values():
        for mount in service.get("volumes", ()):
            source = mount.split(":")[0]
            assert source in volumes or (GRAFANA / source).exists(), source


def test_no_password_is_written_down() -> None:
    environment = services(COMPOSE[0])["grafana"]["environment"]
    assert environment["GF_SECURITY_ADMIN_PASSWORD"].startswith("${GRAFANA_PASSWORD:?")


def test_exemplars_lead_to_the_trace_store() -> None:
    sources = {s["type"]: s for s in read(GRAFANA / "provisioning/datasources/otel-llm.yaml")["datasources"]}
    [link] = sources["prometheus"]["jsonData"]["exemplarTraceIdDestinations"]
    assert link == {"name": "trace_id", "datasourceUid": sources["tempo"]["uid"]}
    for source in sources.values():
        host = re.match(r"http://(\w+):", source["url"])
        assert host is not None
        assert host[1] in services(COMPOSE[0])


def test_dashboards_are_read_from_where_they_are_mounted() -> None:
    [provider] = read(GRAFANA / "provisioning/dashboards/otel-llm.yaml")["providers"]
    for path in COMPOSE:
        mounts = [mount for service in services(path).values() for mount in service.get("volumes", ())]
        assert f"../../grafana-dashboards/json:{provider['options']['path']}:ro" in mounts


def test_prometheus_is_given_names_that_the_dashboards_use() -> None:
    config = read(GRAFANA / "prometheus.yml")
    assert config["otlp"]["translation_strategy"] == "UnderscoreEscapingWithSuffixes"
    assert config["otlp"]["promote_resource_attributes"] == list(RESOURCE)
    assert "--web.enable-otlp-receiver" in services(COMPOSE[0])["prometheus"]["command"]


@pytest.mark.parametrize("path", COLLECTORS, ids=lambda path: path.name)
def test_pipelines_of_the_collector_name_what_is_configured(path: Path) -> None:
    config = read(path)
    both_ends = set(config.get("connectors", {}))
    used: set[str] = set()
    for pipeline in config["service"]["pipelines"].values():
        assert set(pipeline["receivers"]) <= set(config["receivers"]) | both_ends
        assert set(pipeline.get("processors", ())) <= set(config["processors"])
        assert set(pipeline["exporters"]) <= set(config["exporters"]) | both_ends
        assert pipeline["processors"][0] == "memory_limiter" or set(pipeline["receivers"]) <= both_ends
        used.update(pipeline["receivers"], pipeline["processors"], pipeline["exporters"])
    assert used == {*config["receivers"], *config["processors"], *config["exporters"], *both_ends}


def test_collector_names_only_attributes_that_are_emitted() -> None:
    text = (COLLECTOR / "tail-sampling.yaml").read_text(encoding="utf-8")
    named = set(re.findall(r"\b(?:gen_ai|otel_llm)\.[\w.]+", text))
    assert named
    assert named <= set(ATTRIBUTES)


def test_every_collector_file_is_in_the_list_of_what_was_checked() -> None:
    listed = re.findall(r"^\| `([\w-]+\.yaml)`", (COLLECTOR / "README.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert listed == ["minimal.yaml", "gateway.yaml", "tail-sampling.yaml"]
    assert sorted(listed) == [path.name for path in COLLECTORS]
