"""A real vLLM server behind a link of known delay and rate, and real clients before it."""

from __future__ import annotations

import statistics
from typing import Any

import callers
import pytest
from link import Truth, link
from live import Recorded

from otel_llm.client_timeline import ClientTimeline
from otel_llm.demo.server import MODEL
from otel_llm.report.receiver import Receiver

pytestmark = pytest.mark.usefixtures("quiet")

PROMPT = {"model": MODEL, "prompt": "A request waits", "max_tokens": 16, "ignore_eos": True}
ROUNDS = 5
NEAR_NS = 5e6
SHARE = 0.02


def measured(
    recorded: Recorded, port: int, caller: Any, road: dict[str, float], **how: Any
) -> list[tuple[ClientTimeline, Truth]]:
    """
    Attempts over this road, each with what the link did to it, on a warm connection.

    The median of what network is off by is within 5 ms and 2 % of what it is
    off by on a link without delay: that is the programs' own, and the machine's.
    """
    found = []
    offs: dict[bool, list[float]] = {True: [], False: []}
    with (
        link(port, **road) as running,
        link(port) as bare,
        caller(running.port) as ask,
        caller(bare.port) as ask_bare,
    ):
        for number in range(ROUNDS + 1):
            for over, call in ((running, ask), (bare, ask_bare)):
                recorded.attempts.clear()
                call(**how, **PROMPT)
                truth = over.truth()
                if number == 0:
                    continue  # connections and caches are cold
                (attempt,) = recorded.attempts
                assert (attempt.outcome, attempt.method, attempt.model) == ("ok", "paired", MODEL), attempt
                assert sum(attempt.phases().values()) == attempt.duration
                allowed = SHARE * truth.took if over is running else 0
                error = attempt.phases()["network"] - truth.took
                offs[over is running].append(error - max(-allowed, min(error, allowed)))
                if over is running:
                    found.append((attempt, truth))
    assert abs(statistics.median(offs[True]) - statistics.median(offs[False])) <= NEAR_NS, offs
    return found


ROADS = {
    "2x10": {"up": 10, "down": 10},
    "2x25": {"up": 25, "down": 25},
    "2x50": {"up": 50, "down": 50},
    "80/20": {"up": 80, "down": 20},
    "64 kbit/s down": {"up": 25, "down": 25, "down_rate": 8000},
}


@pytest.mark.parametrize("road", ROADS.values(), ids=ROADS.keys())
@pytest.mark.parametrize("stream", [True, False], ids=["stream", "plain"])
def test_network_is_what_the_link_took(
    vllm: tuple[int, Receiver], recorded: Recorded, road: dict[str, float], stream: bool
) -> None:
    found = measured(recorded, vllm[0], callers.httpx_sync, road, stream=stream)
    assert all(truth.took >= (road["up"] + road["down"]) * 1e6 for _, truth in found)
    if stream:
        assert all(attempt.first_token is not None for attempt, _ in found)


@pytest.mark.parametrize("stream", [True, False], ids=["stream", "plain"])
@pytest.mark.parametrize("caller", callers.ALL, ids=lambda caller: caller.__name__)
def test_every_client(vllm: tuple[int, Receiver], recorded: Recorded, caller: Any, stream: bool) -> None:
    measured(recorded, vllm[0], caller, {"up": 25, "down": 25}, stream=stream)


def test_an_upload(vllm: tuple[int, Receiver], recorded: Recorded) -> None:
    road = {"up": 25, "down": 25, "up_rate": 500_000}
    found = measured(recorded, vllm[0], callers.httpx_sync, road, stream=True, user="x" * 1_000_000)
    assert all(truth.took > 2e9 for _, truth in found)


@pytest.mark.parametrize(
    "caller", [callers.httpx_sync, callers.openai_sync, callers.aiohttp_async, callers.requests_sync]
)
def test_a_slow_consumer_is_not_the_network(vllm: tuple[int, Receiver], recorded: Recorded, caller: Any) -> None:
    found = measured(recorded, vllm[0], caller, {"up": 10, "down": 10}, stream=True, hold=0.04)
    # What the link had delivered, and the caller had not yet asked for.
    # A machine that pauses may bring many tokens as one piece, which is held but once, or not at all.
    consumer = [attempt.phases().get("consumer", 0) for attempt, _ in found]
    off = [held - (attempt.ended - truth.delivered) for held, (attempt, truth) in zip(consumer, found, strict=True)]
    assert statistics.median(map(abs, off)) < 10e6, off
    assert statistics.median(consumer) > 100e6
