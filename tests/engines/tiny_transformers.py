"""Random transformers models built in memory, and levers that give a test its ground truth."""

from __future__ import annotations

import functools
import inspect
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from otel_llm.engine_state import EngineState, EngineStep
from otel_llm.engines.transformers import ENGINE
from otel_llm.patching import Patcher
from otel_llm.recording import Draft
from otel_llm.timeline import Timeline

if os.environ.get("OTEL_LLM_REQUIRE_ENGINES") != "1":
    pytest.importorskip("transformers")
import torch
import transformers
from transformers import (
    LogitsProcessor,
    Qwen2Config,
    Qwen2ForCausalLM,
    StoppingCriteria,
    T5Config,
    T5ForConditionalGeneration,
)
from transformers.generation.streamers import BaseStreamer

MASKS_KEPT = tuple(int(part) for part in transformers.__version__.split(".")[:2]) < (5, 19)
"""Whether a mask without padding reaches the decoding method, so that only its values tell."""

CUSTOM_LOOPS = "custom_generate" in inspect.signature(Qwen2ForCausalLM.generate).parameters

torch.set_num_threads(1)  # for models this small more threads are slower

EOS = 2
PAD = 0
VOCABULARY = 128


class Seen(list[Timeline]):
    """Requests, and beside them what the engine said of itself."""

    def __init__(self) -> None:
        super().__init__()
        self.states: list[EngineState] = []
        self.steps: list[EngineStep] = []

    def take(self, emission: Any) -> None:
        if isinstance(emission, Draft):
            emission = emission.timeline()
            if emission is None:
                return
        place = {Timeline: self, EngineState: self.states, EngineStep: self.steps}[type(emission)]
        place.append(emission)


@contextmanager
def watched(*details: bool) -> Iterator[Seen]:
    """The hooks in place, without any telemetry: what they emit is appended."""
    seen = Seen()
    patcher = Patcher(ENGINE, seen.take, lambda **_: "caller", lambda: None, *details)
    patcher.arm()
    assert patcher.state == "applied", patcher.reason
    try:
        yield seen
    finally:
        patcher.undo()


class SlowQwen2(Qwen2ForCausalLM):
    """Sleeps in each forward as told, and notes when each one began and ended."""

    def __init__(self, config: Qwen2Config) -> None:
        super().__init__(config)
        self.delays: list[float] = []
        """Seconds for the coming calls; the last one is repeated."""
        self.forwards: list[int] = []
        self.begins: list[int] = []

    def get_compiled_call(self, compile_config: Any) -> Any:
        return self.__call__  # clocks cannot be compiled; old versions compile on the CPU as well

    @functools.wraps(Qwen2ForCausalLM.forward)  # generate looks at the signature
    def forward(self, *args: Any, **kwargs: Any) -> Any:
        self.begins.append(time.monotonic_ns())
        if self.delays:
            time.sleep(self.delays.pop(0) if len(self.delays) > 1 else self.delays[0])
        output = super().forward(*args, **kwargs)
        self.forwards.append(time.monotonic_ns())
        return output


def qwen2(*, hidden: int = 64, seed: int = 1) -> SlowQwen2:
    """A decoder that never ends by itself, unless a call names an end token."""
    torch.manual_seed(seed)
    return SlowQwen2(_config(hidden)).eval()


def plain_qwen2() -> Qwen2ForCausalLM:
    """The same without levers, for the compiler."""
    torch.manual_seed(1)
    return Qwen2ForCausalLM(_config(64)).eval()


def _config(hidden: int) -> Qwen2Config:
    return Qwen2Config(
        vocab_size=VOCABULARY,
        hidden_size=hidden,
        intermediate_size=2 * hidden,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        tie_word_embeddings=False,
        bos_token_id=1,
        eos_token_id=None,
        pad_token_id=PAD,
    )


def t5(*, seed: int = 1, vocabulary: int = VOCABULARY) -> T5ForConditionalGeneration:
    """An encoder-decoder."""
    torch.manual_seed(seed)
    config = T5Config(
        vocab_size=vocabulary,
        d_model=64,
        d_kv=16,
        d_ff=128,
        num_layers=2,
        num_heads=4,
        decoder_start_token_id=PAD,
        pad_token_id=PAD,
        eos_token_id=1,
        tie_word_embeddings=False,
    )
    return T5ForConditionalGeneration(config).eval()


def prompt(rows: int = 1, width: int = 6) -> torch.Tensor:
    """Token ids that hold neither padding nor an end."""
    return torch.arange(rows * width).reshape(rows, width) % 90 + 10


class Script(LogitsProcessor):
    """Dictates every token: row ``r`` ends with ``EOS`` as its token number ``ends[r]``, from 1."""

    def __init__(self, ends: list[int], width: int) -> None:
        self.ends, self.width = ends, width

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        step = input_ids.shape[1] - self.width + 1
        forced = torch.full_like(scores, -1e9)
        for row, end in enumerate(self.ends):
            forced[row, EOS if step == end else 20 + step] = 0.0
        return forced


class StopRows(StoppingCriteria):
    """A criterion of the user's own: row ``r`` stops after ``lengths[r]`` tokens."""

    def __init__(self, lengths: list[int], width: int) -> None:
        self.lengths, self.width = torch.tensor(lengths), width

    def __call__(self, input_ids: torch.Tensor, scores: Any, **kwargs: Any) -> torch.Tensor:
        return self.lengths == input_ids.shape[1] - self.width


class Clock(BaseStreamer):
    """Notes when each piece arrived: the prompt first, then every token."""

    def __init__(self, fail_at: int = 0, error: BaseException | None = None) -> None:
        self.arrivals: list[int] = []
        self.fail_at, self.error = fail_at, error

    def put(self, value: torch.Tensor) -> None:
        self.arrivals.append(time.monotonic_ns())
        if self.error is not None and len(self.arrivals) == self.fail_at + 1:
            raise self.error

    def end(self) -> None:
        pass


class Event:
    """In the place of ``torch.Event``, which the CPU does not have."""

    def __init__(self, **_: Any) -> None:
        pass

    def record(self) -> None:
        pass

    def synchronize(self) -> None:
        pass
