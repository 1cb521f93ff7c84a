"""The HTTP clients that people call LLM servers with, each doing the same thing."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable, Iterator
from typing import Any

Ask = Callable[..., None]
"""``ask(stream=..., hold=..., **body)``: one request, read to its end, ``hold`` seconds with each piece."""

PATH = "/v1/completions"


@contextlib.contextmanager
def httpx_sync(port: int, library: str = "httpx") -> Iterator[Ask]:
    import importlib

    httpx = importlib.import_module(library)

    def ask(stream: bool, hold: float = 0, **body: Any) -> None:
        with client.stream("POST", PATH, json={**body, "stream": stream}) as response:
            for _ in response.iter_raw():
                time.sleep(hold)

    with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60, trust_env=False) as client:
        yield ask


@contextlib.contextmanager
def httpx2_sync(port: int) -> Iterator[Ask]:
    with httpx_sync(port, "httpx2") as ask:
        yield ask


@contextlib.contextmanager
def requests_sync(port: int) -> Iterator[Ask]:
    import requests

    def ask(stream: bool, hold: float = 0, **body: Any) -> None:
        url = f"http://127.0.0.1:{port}{PATH}"
        if not stream:
            assert session.post(url, json={**body, "stream": stream}).json()
            return
        with session.post(url, json={**body, "stream": stream}, stream=True) as response:
            for _ in response.iter_lines(chunk_size=None):
                time.sleep(hold / 2)  # each event is a line and a blank one

    with requests.Session() as session:
        session.trust_env = False
        yield ask


@contextlib.contextmanager
def openai_sync(port: int) -> Iterator[Ask]:
    import openai

    def ask(stream: bool, hold: float = 0, **body: Any) -> None:
        ignored = {"ignore_eos": body.pop("ignore_eos")}
        answer = client.completions.create(**body, stream=stream, extra_body=ignored)
        if stream:
            for _ in answer:
                time.sleep(hold)

    with openai.OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="none", max_retries=0) as client:
        yield ask


@contextlib.contextmanager
def in_loop(session: Callable[[int], Any], port: int) -> Iterator[Ask]:
    """An asynchronous caller, used like the others."""
    with asyncio.Runner() as runner:
        entered = session(port)
        ask = runner.run(entered.__aenter__())
        try:
            yield lambda **body: runner.run(ask(**body))
        finally:
            runner.run(entered.__aexit__(None, None, None))


@contextlib.asynccontextmanager
async def _httpx(port: int, library: str = "httpx") -> Any:
    import importlib

    httpx = importlib.import_module(library)

    async def ask(stream: bool, hold: float = 0, **body: Any) -> None:
        async with client.stream("POST", PATH, json={**body, "stream": stream}) as response:
            async for _ in response.aiter_raw():
                await asyncio.sleep(hold)

    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=60, trust_env=False) as client:
        yield ask


@contextlib.asynccontextmanager
async def _openai(port: int) -> Any:
    import openai

    async def ask(stream: bool, hold: float = 0, **body: Any) -> None:
        ignored = {"ignore_eos": body.pop("ignore_eos")}
        answer = await client.completions.create(**body, stream=stream, extra_body=ignored)
        if stream:
            async for _ in answer:
                await asyncio.sleep(hold)

    async with openai.AsyncOpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="none", max_retries=0) as client:
        yield ask


@contextlib.asynccontextmanager
async def _aiohttp(port: int) -> Any:
    import aiohttp

    async def ask(stream: bool, hold: float = 0, **body: Any) -> None:
        url = f"http://127.0.0.1:{port}{PATH}"
        async with session.post(url, json={**body, "stream": stream}) as response:
            if not stream:
                assert await response.json()
                return
            async for _ in response.content:
                await asyncio.sleep(hold / 2)  # each event is a line and a blank one

    async with aiohttp.ClientSession() as session:
        yield ask


def httpx_async(port: int) -> Any:
    return in_loop(_httpx, port)


def httpx2_async(port: int) -> Any:
    return in_loop(lambda port: _httpx(port, "httpx2"), port)


def openai_async(port: int) -> Any:
    return in_loop(_openai, port)


def aiohttp_async(port: int) -> Any:
    return in_loop(_aiohttp, port)


ALL = (
    httpx_sync, httpx_async, httpx2_sync, httpx2_async, openai_sync, openai_async, aiohttp_async, requests_sync,
)  # fmt: skip
