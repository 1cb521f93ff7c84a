"""Sound in the prompt of a real vLLM, offline and with the engine core in this process."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import pytest

import otel_llm
from otel_llm.testing import assert_adds_up, recording
from otel_llm.timeline import Phase, Timeline
from tests.engines import tiny_media
from tests.engines.slow import slowed
from tests.engines.test_vllm_offline import core, params

pytestmark = pytest.mark.vllm
SECONDS = 0.4


@pytest.fixture(scope="module")
def llm(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    otel_llm.instrument(engines=["vllm"])
    model = tiny_media.hearing(tiny_model, tmp_path_factory.mktemp("hearing") / "model")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
        from vllm import LLM

        yield LLM(
            model=str(model),
            load_format="dummy",
            enforce_eager=True,
            dtype="float32",
            max_model_len=1024,
            served_model_name="tiny",
        )
    otel_llm.uninstrument()


def listen(
    llm: Any, seconds: int, within: AbstractContextManager[Any] | None = None
) -> tuple[Timeline, dict[str, Phase]]:
    """Ask about some noise, which is another one each time: vLLM keeps what it has processed and encoded."""
    import numpy

    noise = numpy.random.default_rng().standard_normal(16_000 * seconds, numpy.float32)
    prompt = {
        "prompt": "What waits <|audio_bos|><|AUDIO|><|audio_eos|>",
        "multi_modal_data": {"audio": (noise, 16_000)},
    }
    with recording() as seen, within or nullcontext():
        (answer,) = llm.generate([prompt], params(), use_tqdm=False)
    places = answer.prompt_token_ids.count(llm.llm_engine.model_config.hf_config.audio_token_id)
    assert places == tiny_media.SOUND_TOKENS * seconds
    (request,) = seen
    assert_adds_up(request)
    assert (request.operation, request.output_tokens) == ("text_completion", 6)
    assert request.prompt_tokens == len(answer.prompt_token_ids)
    phases = {phase.name: phase for phase in request.phases()}
    assert list(phases) == ["preprocess", "queue", "prefill", "decode", "postprocess"]
    return request, phases


def test_sound_takes_places_of_the_prompt(llm: Any) -> None:
    short, _ = listen(llm, 1)
    long, _ = listen(llm, 3)
    assert (short.prompt_tokens or 0) + 2 * tiny_media.SOUND_TOKENS == long.prompt_tokens


def test_a_delay_of_its_encoder_is_prefill(llm: Any) -> None:
    tower = core(llm).model_executor.driver_worker.worker.model_runner.model.audio_tower
    with slowed(tower, "forward", SECONDS) as encoded:
        _, phases = listen(llm, 1)
    ((began, ended),) = encoded
    assert phases["prefill"].start <= began < ended <= phases["prefill"].end
    assert ended - began >= SECONDS * 1e9


def test_its_processing_is_before_the_request_or_preprocess_of_one_that_is_marked_by_hand(llm: Any) -> None:
    """``LLM`` renders a prompt before it asks the engine."""
    from vllm.model_executor.models.qwen2_audio import Qwen2AudioMultiModalProcessor

    with slowed(Qwen2AudioMultiModalProcessor, "apply", SECONDS) as processed:
        request, _ = listen(llm, 1)
        _, phases = listen(llm, 1, within=otel_llm.request())
    (_, done), (began, ended) = processed
    assert done <= request.start
    assert phases["preprocess"].start <= began < ended <= phases["preprocess"].end
    assert ended - began >= SECONDS * 1e9
