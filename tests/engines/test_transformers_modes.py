"""Every way to generate, against clocks inside the model: the first token and the last one are when they are made."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch

from otel_llm.testing import assert_adds_up
from otel_llm.timeline import Timeline
from tests.engines import tiny_transformers as tiny

MILLISECOND = 1_000_000
TOKENS = 5


class Mode(NamedTuple):
    arguments: dict[str, Any]
    passes_to_first: int | None = 1
    """Forwards that the first token takes; None where versions differ, and it is all but one per further token."""
    rows: int = 1


EMBEDDINGS = torch.randn(1, 6, 64, generator=torch.Generator().manual_seed(0))
MODES = {
    "greedy": Mode({}),
    "sampling": Mode({"do_sample": True}),
    "several samples": Mode({"do_sample": True, "num_return_sequences": 3}, rows=3),
    "beams": Mode({"num_beams": 3, "num_return_sequences": 2}, rows=2),
    "sampled beams": Mode({"num_beams": 3, "do_sample": True}),
    "beams with a criterion": Mode({"num_beams": 2, "stopping_criteria": [tiny.StopRows([99] * 4, 6)]}),
    "static cache": Mode({"cache_implementation": "static"}),
    "no cache": Mode({"use_cache": False}),
    "chunked prefill": Mode({"prefill_chunk_size": 4, "attention_mask": torch.ones(1, 6)}, passes_to_first=None),
    "embeddings": Mode({"inputs_embeds": EMBEDDINGS}),
    "dictionary": Mode({"return_dict_in_generate": True, "output_scores": True}),
}
GONE = {
    "_contrastive_search": Mode({"penalty_alpha": 0.6, "top_k": 4}, passes_to_first=2),
    "_dola_decoding": Mode({"dola_layers": "low"}),
    "_group_beam_search": Mode({"num_beams": 4, "num_beam_groups": 2, "diversity_penalty": 0.5}),
    "_constrained_beam_search": Mode({"num_beams": 3, "force_words_ids": [[40]]}),
}


@pytest.fixture(scope="module")
def model() -> tiny.SlowQwen2:
    return tiny.qwen2()


@pytest.fixture
def seen() -> Iterator[tiny.Seen]:
    with tiny.watched() as timelines:
        yield timelines


def against_the_clock(model: tiny.SlowQwen2, seen: tiny.Seen, mode: Mode) -> Timeline:
    """The first token is there before the pass that follows it begins, the last one after the last pass."""
    arguments = {"max_new_tokens": TOKENS, **mode.arguments}
    inputs = {} if "inputs_embeds" in arguments else {"inputs": tiny.prompt()}
    early, late = [1 << 60], [1 << 60]
    # Before a pass the library prepares it: a millisecond on a busy machine, more on the static cache of old versions.
    # How close the stamps are to a token's delivery is tested with streamers.
    close = (50 if "cache_implementation" in arguments else 5) * MILLISECOND
    while len(early) < 20 and max(min(early), min(late)) >= close:  # interruptions between two clocks spoil some calls
        seen.clear()
        model.begins.clear()
        model.forwards.clear()
        model.delays = [0.01]
        model.generate(**inputs, **arguments)
        after = time.monotonic_ns()
        model.delays = []
        (timeline,) = seen
        assert timeline.first_token is not None
        assert timeline.last_token is not None
        first = mode.passes_to_first or len(model.forwards) - (TOKENS - 1)
        assert model.forwards[first - 1] <= timeline.first_token <= model.begins[first]
        assert model.forwards[-1] <= timeline.last_token <= after
        early.append(model.begins[first] - timeline.first_token)
        late.append(timeline.last_token - model.forwards[-1])
        assert_adds_up(timeline)
    assert min(early) < close
    assert min(late) < close  # beams are sorted out after the last pass
    return timeline


@pytest.mark.parametrize("name", MODES)
def test_modes(model: tiny.SlowQwen2, seen: tiny.Seen, name: str) -> None:
    mode = MODES[name]
    timeline = against_the_clock(model, seen, mode)
    assert timeline.output_tokens == TOKENS * mode.rows
    assert len(timeline.children) == (mode.rows if mode.rows > 1 else 0)


@pytest.mark.parametrize("method", GONE)
def test_modes_that_have_left_the_library(model: tiny.SlowQwen2, seen: tiny.Seen, method: str) -> None:
    if not hasattr(model, method):
        pytest.skip(f"this version of transformers has no {method}")
    assert against_the_clock(model, seen, GONE[method]).output_tokens == TOKENS


def test_an_assistant_model(model: tiny.SlowQwen2, seen: tiny.Seen) -> None:
    """The first round ends when the model has verified what the assistant drafted."""
    assistant = tiny.qwen2(hidden=32, seed=5)
    assistant.delays = [0.01]
    model.begins.clear()
    model.forwards.clear()
    output = model.generate(tiny.prompt(), max_new_tokens=10, assistant_model=assistant)
    (timeline,) = seen
    assert timeline.first_token is not None
    assert model.forwards[0] <= timeline.first_token <= model.begins[1]
    drafts = [end for end in assistant.forwards if end < model.begins[0]]
    assert drafts, "the first draft is part of the first round"
    assert timeline.first_token - timeline.start >= len(drafts) * 10 * MILLISECOND
    assert timeline.output_tokens == output.shape[1] - 6


def test_a_static_cache_with_the_compiler(seen: tiny.Seen) -> None:
    from transformers.generation.configuration_utils import CompileConfig

    passes: list[tuple[int, int]] = []

    def backend(graph: torch.fx.GraphModule, _: Any, **options: Any) -> Callable[..., Any]:
        def run(*args: Any) -> Any:
            begin = time.monotonic_ns()
            time.sleep(0.03)
            output = graph.forward(*args)
            passes.append((begin, time.monotonic_ns()))
            return output

        return run

    torch.compiler.reset()
    config = CompileConfig(fullgraph=True, backend=backend)
    config._compile_all_devices = True  # else the library compiles on accelerators only
    arguments = {"max_new_tokens": TOKENS, "cache_implementation": "static", "compile_config": config}
    model = tiny.plain_qwen2()
    model.generate(tiny.prompt(), disable_compile=False, **arguments)
    seen.clear()
    passes.clear()
    model.generate(tiny.prompt(), disable_compile=False, **arguments)
    (timeline,) = seen
    assert len(passes) in (TOKENS - 1, TOKENS), "the prompt itself may be left uncompiled"
    decodes = passes[-(TOKENS - 1) :]
    assert timeline.first_token is not None
    assert timeline.last_token is not None
    assert timeline.first_token <= decodes[0][0]
    assert decodes[-1][1] <= timeline.last_token <= timeline.ended
    assert timeline.last_token - timeline.first_token >= (TOKENS - 1) * 30 * MILLISECOND
    assert timeline.output_tokens == TOKENS


def slowed(module: Any, monkeypatch: pytest.MonkeyPatch, seconds: float) -> list[tuple[int, int]]:
    """Each forward of this part of a model takes longer by a known time; returns where they begin and end."""
    original, passes = module.forward, []

    @functools.wraps(original)
    def forward(*args: Any, **kwargs: Any) -> Any:
        begin = time.monotonic_ns()
        time.sleep(seconds)
        output = original(*args, **kwargs)
        passes.append((begin, time.monotonic_ns()))
        return output

    monkeypatch.setattr(module, "forward", forward)
    return passes


@pytest.mark.parametrize("beams", [1, 3])
def test_an_encoder_belongs_to_the_prefill(seen: tiny.Seen, monkeypatch: pytest.MonkeyPatch, beams: int) -> None:
    translator = tiny.t5()
    arguments = {"max_new_tokens": TOKENS, "min_new_tokens": TOKENS, "num_beams": beams}
    translator.generate(tiny.prompt(2), **arguments)
    seen.clear()
    encoded = slowed(translator.get_encoder(), monkeypatch, 0.1)
    decoded = slowed(translator.get_decoder(), monkeypatch, 0.03)
    translator.generate(tiny.prompt(2), **arguments)
    (timeline,) = seen
    assert timeline.scheduled is not None
    assert timeline.first_token is not None
    assert timeline.last_token is not None
    assert timeline.scheduled <= encoded[0][0]
    assert decoded[0][1] <= timeline.first_token <= decoded[1][0]
    assert decoded[-1][1] <= timeline.last_token <= timeline.ended
    assert timeline.first_token - timeline.scheduled >= 130 * MILLISECOND
    assert timeline.output_tokens == 2 * TOKENS


@pytest.mark.skipif(not tiny.CUSTOM_LOOPS, reason="this version of transformers takes no custom_generate")
@pytest.mark.parametrize(
    ("call", "known"),
    [("model._sample(input_ids, **kwargs)", True), ("input_ids", False)],
    ids=["a loop of the library", "a loop of its own"],
)
def test_a_decoding_method_from_a_repository(
    model: tiny.SlowQwen2, seen: tiny.Seen, tmp_path: Path, call: str, known: bool
) -> None:
    """As contrastive and group beam search since they left the library: here from a folder."""
    (tmp_path / "custom_generate").mkdir()
    (tmp_path / "custom_generate/generate.py").write_text(
        f"def generate(model, input_ids=None, inputs=None, **kwargs):\n"
        f"    input_ids = inputs if input_ids is None else input_ids\n"
        f"    def loop(model, input_ids, **kwargs):\n"
        f"        return {call}\n"
        f"    kwargs.pop('custom_generate', None)\n"
        f"    return GenerationMixin.generate(model, input_ids, custom_generate=loop, **kwargs)\n"
        f"from transformers import GenerationMixin\n"
    )
    model.generate(tiny.prompt(), max_new_tokens=TOKENS, custom_generate=str(tmp_path), trust_remote_code=True)
    (timeline,) = seen  # it calls generate again on the same model: that is one request
    assert_adds_up(timeline)
    assert timeline.output_tokens == (TOKENS if known else None)
    assert timeline.phases()[0].name == ("prefill" if known else "unsplit")
