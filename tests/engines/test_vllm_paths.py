"""
Every way through a real vLLM that is more than a prompt and its tokens, the engine core in this process.

One engine with adapters, speculation, priorities, structured output and keys and values from elsewhere; what is
waited for is injected, and its true time taken beside it.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

import otel_llm
from otel_llm.testing import assert_adds_up, recording
from otel_llm.timeline import Timeline
from tests.engines import late_connector, tiny_vllm, vllm_live

pytestmark = pytest.mark.vllm
MS = 1_000_000


@pytest.fixture(scope="module")
def adapter(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    from vllm.lora.request import LoRARequest

    return LoRARequest("polite", 1, str(tiny_vllm.lora(tiny_model, tmp_path_factory.mktemp("lora") / "polite")))


@pytest.fixture(scope="module")
def llm(tiny_model: Path) -> Iterator[Any]:
    otel_llm.instrument(engines=["vllm"])
    patch = pytest.MonkeyPatch()
    patch.setenv("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
    from vllm import LLM

    options: dict[str, Any] = {
        "max_model_len": 512,
        "block_size": 32,
        "served_model_name": "tiny",
        "enable_lora": True,
        "max_lora_rank": 8,
        "max_num_seqs": 4,
        "scheduling_policy": "priority",
        "enable_prompt_embeds": True,
        "kv_transfer_config": {
            "kv_connector": "LateConnector",
            "kv_connector_module_path": "tests.engines.late_connector",
            "kv_role": "kv_consumer",
        },
    }
    if vllm_live.speculates():
        options["speculative_config"] = {"method": "ngram", "num_speculative_tokens": 3, "prompt_lookup_max": 2}
        if vllm_live.has_option("per_request_spec_decode_metrics"):
            options["per_request_spec_decode_metrics"] = "summary"
    yield LLM(model=str(tiny_model), enforce_eager=True, dtype="float32", **options)
    from vllm.distributed.kv_transfer import ensure_kv_transfer_shutdown

    ensure_kv_transfer_shutdown()  # it is one per process, whatever its engine
    patch.undo()
    otel_llm.uninstrument()


@pytest.fixture
def seen(llm: Any) -> Iterator[list[Timeline]]:
    with recording() as timelines:
        yield timelines
    for timeline in timelines:
        assert_adds_up(timeline)
    assert not llm.llm_engine.output_processor.request_states


def params(**sampling: Any) -> Any:
    from vllm import SamplingParams

    return SamplingParams(**{"temperature": 0.0, "ignore_eos": True, "max_tokens": 6, **sampling})


def ask(llm: Any, seen: list[Timeline], words: int = 6, **sampling: Any) -> Timeline:
    llm.generate([vllm_live.prompt(words)], params(**sampling), use_tqdm=False)
    return seen[-1]


def core(llm: Any) -> Any:
    return llm.llm_engine.engine_core.engine_core


def phases(timeline: Timeline) -> dict[str, int]:
    return {phase.name: phase.duration for phase in timeline.phases()}


def test_an_adapter_is_the_model(llm: Any, seen: list[Timeline], adapter: Any) -> None:
    llm.generate([vllm_live.prompt(6)], params(), use_tqdm=False, lora_request=adapter)
    assert (seen[0].model, seen[0].output_tokens) == ("polite", 6)
    assert ask(llm, seen).model == "tiny"


def test_a_prompt_that_its_sender_has_embedded(llm: Any, seen: list[Timeline]) -> None:
    import torch

    embedded = torch.randn(7, llm.llm_engine.model_config.get_hidden_size())
    llm.generate([{"prompt_embeds": embedded}], params(), use_tqdm=False)
    (request,) = seen
    assert (request.operation, request.prompt_tokens, request.output_tokens) == ("text_completion", 7, 6)
    assert list(phases(request)) == ["preprocess", "queue", "prefill", "decode", "postprocess"]


@contextmanager
def slow_compiler(llm: Any, seconds: float) -> Iterator[dict[str, float]]:
    """Grammars take this long to compile; gives when that began and ended, and when the request was queued."""
    backend, scheduler, times = core(llm).structured_output_manager.backend, core(llm).scheduler, {}
    compile_grammar, add_request = backend.compile_grammar, scheduler.add_request

    def slow(*args: Any, **kwargs: Any) -> Any:
        times["began"] = time.monotonic()
        time.sleep(seconds)
        grammar = compile_grammar(*args, **kwargs)
        times["ended"] = time.monotonic()
        return grammar

    def queued(*args: Any, **kwargs: Any) -> None:
        add_request(*args, **kwargs)
        times["queued"] = time.monotonic()

    backend.compile_grammar, scheduler.add_request = slow, queued
    try:
        yield times
    finally:
        del backend.compile_grammar, scheduler.add_request


def test_the_wait_for_a_grammar_is_told_and_lies_in_the_queue(llm: Any, seen: list[Timeline]) -> None:
    from vllm.sampling_params import StructuredOutputsParams

    def choose(*words: str) -> Timeline:
        llm.generate(
            [vllm_live.prompt(6)],
            params(structured_outputs=StructuredOutputsParams(choice=list(words)), ignore_eos=False),
            use_tqdm=False,
        )
        return seen[-1]

    assert float(choose("yes", "no").attributes["otel_llm.engine.grammar_wait"]) >= 0  # and the compiler is made
    with slow_compiler(llm, 0.4) as times:
        request = choose("left", "right")
    wait = float(request.attributes["otel_llm.engine.grammar_wait"])
    assert times["ended"] - times["began"] >= 0.4
    assert wait == pytest.approx(times["ended"] - times["queued"], abs=0.04)
    assert wait > 0.2
    assert phases(request)["queue"] / 1e9 >= wait
    assert request.attributes["otel_llm.engine.queue_time"] >= wait  # type: ignore[operator]
    assert "otel_llm.engine.grammar_wait" not in ask(llm, seen).attributes


def test_drafted_and_accepted_tokens(llm: Any, seen: list[Timeline]) -> None:
    if not vllm_live.speculates():
        pytest.skip("this version of vLLM cannot draft on the CPU")
    scheduler, steps = core(llm).scheduler, []
    update = scheduler.update_from_output

    def watched(scheduled: Any, output: Any) -> Any:
        drafted = sum(len(tokens) for tokens in scheduled.scheduled_spec_decode_tokens.values())
        made = sum(len(tokens) for tokens in output.sampled_token_ids)
        steps.append((drafted, made))
        return update(scheduled, output)

    scheduler.update_from_output = watched
    try:
        llm.generate(["the queue the queue the queue the queue the"], params(max_tokens=60), use_tqdm=False)
    finally:
        del scheduler.update_from_output
    request = seen[-1]
    assert request.output_tokens == 60
    verified = [(drafted, made) for drafted, made in steps if drafted]
    assert verified, "nothing was drafted"
    if not vllm_live.has_option("per_request_spec_decode_metrics"):
        assert "otel_llm.engine.draft_tokens" not in request.attributes
        return
    assert request.attributes["otel_llm.engine.draft_tokens"] == sum(drafted for drafted, _ in verified)
    assert request.attributes["otel_llm.engine.accepted_tokens"] == sum(made - 1 for _, made in verified)


def test_the_wait_for_keys_and_values_is_told(llm: Any, seen: list[Timeline]) -> None:
    late_connector.waited.clear()
    request = ask(llm, seen, words=40)
    (took,) = late_connector.waited.values()
    wait = float(request.attributes["otel_llm.engine.kv_transfer_wait"])
    assert took >= late_connector.SECONDS
    assert took <= wait <= float(request.attributes["otel_llm.engine.queue_time"])
    assert phases(request)["queue"] / 1e9 >= wait
    assert request.cached_tokens is not None
    assert request.cached_tokens >= 32
    assert "otel_llm.engine.kv_transfer_wait" not in ask(llm, seen).attributes


def test_priority_decides_who_waits(llm: Any, seen: list[Timeline]) -> None:
    prompts = [vllm_live.prompt(5) for _ in range(12)]
    llm.generate(prompts, params(max_tokens=12), use_tqdm=False, priority=[1] * 8 + [0] * 4)
    order = sorted(seen, key=lambda timeline: int(str(timeline.request_id).split("-")[0]))
    queues = [phases(timeline)["queue"] for timeline in order]
    assert max(queues[8:]) < min(sorted(queues[:8])[4:])


def test_beams_are_one_request(llm: Any, seen: list[Timeline]) -> None:
    from vllm.sampling_params import BeamSearchParams

    started = time.monotonic_ns()
    (found,) = llm.beam_search([{"prompt": vllm_live.prompt(5)}], BeamSearchParams(beam_width=2, max_tokens=5))
    ended = time.monotonic_ns()
    (request,) = seen
    assert started <= request.start
    assert request.ended <= ended
    assert ended - started - request.duration < (ended - started) / 10
    assert request.output_tokens == len(request.children) == 1 + 2 * 4
    assert request.prompt_tokens == len(found.sequences[0].tokens) - 5
    assert list(phases(request)) == ["preprocess", "queue", "prefill", "decode", "postprocess"]


def test_many_beams_are_bounded(llm: Any, seen: list[Timeline]) -> None:
    from vllm.sampling_params import BeamSearchParams

    llm.beam_search([{"prompt": vllm_live.prompt(5)}], BeamSearchParams(beam_width=4, max_tokens=40))
    (request,) = seen
    assert request.output_tokens == 1 + 4 * 39
    assert len(request.children) < 130


def test_what_is_marked_by_hand_encloses_the_engines_request(llm: Any, seen: list[Timeline]) -> None:
    with otel_llm.request():
        time.sleep(0.2)
        llm.generate([vllm_live.prompt(6)], params(), use_tqdm=False)
        time.sleep(0.1)
    (request,) = seen
    assert (request.engine, request.model, request.output_tokens) == ("vllm", "tiny", 6)
    assert phases(request)["preprocess"] >= 200 * MS
    assert phases(request)["postprocess"] >= 100 * MS


@pytest.mark.expects_faults
@pytest.mark.parametrize("target", [target for target in vllm_live.TARGETS if target.endswith(vllm_live.RARE)])
@pytest.mark.parametrize("position", vllm_live.POSITIONS)
def test_an_error_in_any_rare_hook_leaves_the_engine_and_its_answers_alone(
    llm: Any, target: str, position: str
) -> None:
    from vllm.distributed.kv_transfer.kv_connector.factory import KVConnectorFactory
    from vllm.distributed.kv_transfer.kv_connector.v1.base import KVConnectorRole
    from vllm.sampling_params import BeamSearchParams, StructuredOutputsParams

    chosen = params(structured_outputs=StructuredOutputsParams(choice=[target, position]), ignore_eos=False)

    def some() -> list[Any]:
        outputs = llm.generate([vllm_live.prompt(6)], chosen, use_tqdm=False)
        llm.reset_prefix_cache()
        llm.generate([vllm_live.prompt(40)], params(), use_tqdm=False)  # it answers with what the memory held
        found = llm.beam_search([{"prompt": vllm_live.prompt(5)}], BeamSearchParams(beam_width=2, max_tokens=2))
        llm.llm_engine.logger_manager.record_sleep_state(0, 0)
        connector = KVConnectorFactory.create_connector(
            core(llm).vllm_config, KVConnectorRole.SCHEDULER, core(llm).scheduler.kv_cache_config
        )
        return [outputs[0].outputs[0].text, found[0].sequences[0].tokens, type(connector)]

    healthy = some()
    with vllm_live.sabotaged(target, position) as patcher:
        assert some() == healthy
        assert patcher.breaker.seen > 0
    assert some() == healthy
