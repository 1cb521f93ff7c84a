"""A real AsyncLLM on the CPU, in an event loop of its own thread."""

from __future__ import annotations

import asyncio
import contextlib
import os
import threading
import time
from collections.abc import Coroutine, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import otel_llm
from otel_llm.engines.vllm import ENGINE
from otel_llm.faults import Breaker
from otel_llm.patching import Patcher, Probe
from tests.engines import sabotage

T = TypeVar("T")

os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
os.environ.setdefault("VLLM_LOGGING_LEVEL", "WARNING")

HOOKS = ENGINE.hooks(Probe(print, print, lambda: False, Breaker("vllm")))  # type: ignore[arg-type]
TARGETS = list(dict.fromkeys(hook.targets[0] for hook in HOOKS if not hook.replacement))
RARE = ("_create_grammar", "create_connector", "_update_waiting_for_remote_kv", "beam_search", "record_sleep_state")
"""What a prompt and its tokens do not come by; test_vllm_paths.py goes there."""
POSITIONS = sabotage.POSITIONS[:2]


@contextlib.contextmanager
def sabotaged(target: str, position: str) -> Iterator[Patcher]:
    """All hooks of vLLM in place, one of them broken, instead of those that instrument() made."""
    otel_llm.uninstrument()
    try:
        with sabotage.armed(ENGINE, position, target) as patcher:
            yield patcher
    finally:
        otel_llm.instrument(engines=["vllm"])


WORDS = ("the", "quick", "brown", "fox", "waits", "in", "the", "queue", "until", "a", "slot", "is", "free")


def prompt(words: int) -> str:
    """About two tokens per word."""
    return " ".join(WORDS[i % len(WORDS)] for i in range(words))


@dataclass
class Answer:
    """What the caller of ``generate`` saw, by its own clock and count."""

    request_id: str
    started: int
    ended: int
    first_item: int | None
    prompt_tokens: int
    cached_tokens: int | None
    output_tokens: int
    text: str
    finish_reasons: tuple[str | None, ...]
    error: BaseException | None = None


def has_option(name: str) -> bool:
    """Whether this version of vLLM has an engine argument."""
    from dataclasses import fields

    from vllm import EngineArgs

    return name in {field.name for field in fields(EngineArgs)}


def speculates() -> bool:
    """Whether this version can draft on the CPU: 0.30 verifies drafts with a Triton kernel, which is not there."""
    import vllm

    return not vllm.__version__.startswith("0.30.")


class LiveEngine:
    """
    Chunked prefill in steps of 256 tokens, and a KV cache small enough to preempt.

    Statistics are off, as a user may have them: otel-llm has to keep them on.
    """

    def __init__(self, model: Path, **options: Any) -> None:
        self.loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self.loop.run_forever, daemon=True)
        self._thread.start()
        self.engine = self.run(self._create(str(model), options))

    async def _create(self, model: str, options: dict[str, Any]) -> Any:
        from vllm import AsyncEngineArgs
        from vllm.v1.engine.async_llm import AsyncLLM

        settings = {"max_model_len": 512, "max_num_batched_tokens": 256, "num_gpu_blocks_override": 20}
        settings |= {"block_size": 32, "max_num_seqs": 16, "served_model_name": "tiny"}
        settings |= {"enforce_eager": True, "dtype": "float32"}
        return AsyncLLM.from_engine_args(
            AsyncEngineArgs(model=model, disable_log_stats=True, **{**settings, **options})
        )

    def run(self, work: Coroutine[Any, Any, T], timeout: float = 300) -> T:
        """Run a coroutine in the engine's loop and wait for its result."""
        return asyncio.run_coroutine_threadsafe(work, self.loop).result(timeout)

    def close(self) -> None:
        """Stop the engine core and the loop."""
        self.loop.call_soon_threadsafe(self.engine.shutdown)
        time.sleep(0.5)
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join(30)

    async def ask(self, request_id: str, words: int = 8, *, stream: bool = True, **sampling: Any) -> Answer:
        """Ask as the OpenAI server does, and note what comes."""
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind

        kind = RequestOutputKind.DELTA if stream else RequestOutputKind.FINAL_ONLY
        params = SamplingParams(**{"temperature": 0.0, "ignore_eos": True, **sampling}, output_kind=kind)
        outputs: dict[int, int] = {}
        reasons: dict[int, str | None] = {}
        texts: dict[int, str] = {}
        prompt_tokens, cached, first = 0, None, None
        started = time.monotonic_ns()
        async for item in self.engine.generate(prompt(words), params, request_id):
            ended = time.monotonic_ns()
            first = first or ended
            prompt_tokens, cached = len(item.prompt_token_ids), item.num_cached_tokens
            for output in item.outputs:
                outputs[output.index] = outputs.get(output.index, 0) + len(output.token_ids)
                texts[output.index] = texts.get(output.index, "") + output.text
                if output.finish_reason:
                    reasons[output.index] = output.finish_reason
        return Answer(
            request_id,
            started,
            ended,
            first,
            prompt_tokens,
            cached,
            sum(outputs.values()),
            "|".join(texts[index] for index in sorted(texts)),
            tuple(reasons.values()),
        )
