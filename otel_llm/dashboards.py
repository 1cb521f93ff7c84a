"""
The Grafana dashboards: written into a folder, or put into a Grafana.

https://grafana.com/docs/grafana/latest/developers/http_api/dashboard/
"""

from __future__ import annotations

import json
import re
import urllib.error
import urllib.request
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path
from typing import Any, Final, Literal

from otel_llm import sanitize

Model = dict[str, Any]
State = Literal["created", "updated", "unchanged"]

TOKEN: Final = "GRAFANA_TOKEN"
"""Variable that holds the token of a service account with the role Editor."""

_TIMEOUT_SECONDS: Final = 30.0
# In the installed package; in a checkout the files are still where they are built.
_PLACES: Final = (
    Path(__file__).with_name("grafana_dashboards"),
    Path(__file__).parents[1] / "grafana-dashboards" / "json",
)
# Grafana gives these on its own.
_OF_GRAFANA: Final = ("id", "version")


class GrafanaError(Exception):
    """Grafana did not do as it was asked; the message says why."""


@dataclass(frozen=True, slots=True)
class Pushed:
    """What became of one dashboard."""

    title: str
    state: State


def files() -> list[Path]:
    """The dashboards' JSON files, by name."""
    return sorted(path for place in _PLACES for path in place.glob("*.json"))


def models(*, native: bool = False) -> dict[str, Model]:
    """The dashboards by file name; with ``native`` their queries are for native histograms."""
    found = {path.name: json.loads(path.read_text(encoding="utf-8")) for path in files()}
    return {name: _native_model(model) for name, model in found.items()} if native else found


def export(folder: Path, *, native: bool = False) -> list[Path]:
    """Write the dashboards into a folder, which is made if need be, and return the files."""
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for name, model in models(native=native).items():
        target = folder / name
        target.write_text(json.dumps(model, indent=2, sort_keys=True) + "\n", encoding="utf-8")
        written.append(target)
    return written


def push(url: str, token: str, *, dry_run: bool = False, native: bool = False) -> list[Pushed]:
    """
    Create or update the dashboards in a Grafana; those that are as they should be are left alone.

    With ``dry_run`` nothing is written. Raises GrafanaError.
    """
    done = []
    for model in models(native=native).values():
        found = _ask(url, f"/api/dashboards/uid/{model['uid']}", token)
        state: State = "created" if found is None else "updated"
        if found is not None and _own(found["dashboard"]) == _own(model):
            state = "unchanged"
        elif not dry_run:
            # Whoever changed it in Grafana changed a copy: these files are the source.
            _ask(url, "/api/dashboards/db", token, {"dashboard": model, "overwrite": True})
        done.append(Pushed(model["title"], state))
    return done


_PART: Final = re.compile(
    r"sum(?: by \((?P<by>[^)]*)\) )?\((?P<call>rate|increase)\((?P<name>\w+)_(?P<part>bucket|sum|count)"
    r"(?:\{(?P<matchers>[^}]*)\})?(?P<window>\[[^]]*\](?: offset [$\w]+)?)\)\)"
)
"""What the dashboards ask of an explicit histogram: they are built, so it always looks like this."""
_BOUND: Final = re.compile(r',? ?le="([^"]*)"')


def native_histograms(expr: str) -> str:
    """
    The same query where histograms are stored as native ones: exponential, or with custom buckets.

    There a histogram is one series, which functions of PromQL take apart.
    https://prometheus.io/docs/specs/native_histograms/
    """

    def whole(found: re.Match[str]) -> str:
        labels = [label for label in (found["by"] or "").split(", ") if label not in ("", "le")]
        matchers, bound = found["matchers"] or "", _BOUND.search(found["matchers"] or "")
        series = f"{found['name']}{{{_BOUND.sub('', matchers)}}}{found['window']}"
        group = f" by ({', '.join(labels)}) " if labels else ""
        histogram = f"sum{group}({found['call']}({series}))"
        if found["part"] != "bucket":
            return f"histogram_{found['part']}({histogram})"
        if bound is None:
            return histogram
        return f"(histogram_fraction(0, {bound[1]}, {histogram}) * histogram_count({histogram}))"

    return _PART.sub(whole, expr)


def _native_model(model: Model) -> Model:
    for panel in model["panels"]:
        for target in panel.get("targets", ()):
            target["expr"] = native_histograms(target["expr"])
    for variable in model["templating"]["list"]:
        if variable["type"] == "query":
            variable["query"] = re.sub(r"^(label_values\(\w+)_count", r"\1", variable["query"])
    return model


def _own(model: Model) -> Model:
    return {key: value for key, value in model.items() if key not in _OF_GRAFANA}


def _ask(url: str, path: str, token: str, body: Model | None = None) -> Model | None:
    """Return the answer, None if there is no such dashboard."""
    if not (token.isascii() and token.isprintable()):  # else the error would quote it
        raise GrafanaError("the token has characters that no token has")
    try:
        request = urllib.request.Request(
            url.rstrip("/") + path,
            data=None if body is None else json.dumps(body).encode(),
            headers={"Authorization": f"Bearer {token}", "Content-Type": "application/json"},
        )
    except ValueError:
        raise GrafanaError(f"{url} is no http address") from None
    if request.type not in ("http", "https"):
        raise GrafanaError(f"{url} is no http address")
    try:
        with urllib.request.urlopen(request, timeout=_TIMEOUT_SECONDS) as answer:
            content = json.load(answer)
    except urllib.error.HTTPError as error:
        if error.code == 404 and body is None:
            return None
        raise GrafanaError(f"{url} answered {error.code} {sanitize.text(error.reason)} for {path}") from None
    except (OSError, ValueError, HTTPException, RecursionError) as error:
        raise GrafanaError(f"{url} did not answer as a Grafana does ({sanitize.text(str(error))})") from None
    if not isinstance(content, dict) or not (body or isinstance(content.get("dashboard"), dict)):
        raise GrafanaError(f"{url} did not answer as a Grafana does (no dashboard in it)")
    return content
