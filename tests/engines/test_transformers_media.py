"""Models beyond text, with loops and ``generate`` methods of their own."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch

from otel_llm.testing import assert_adds_up
from otel_llm.timeline import Timeline
from tests.engines import tiny_transformers as tiny


@pytest.fixture
def seen() -> Iterator[list[Timeline]]:
    with tiny.watched() as timelines:
        yield timelines


def test_speech_to_text(seen: list[Timeline]) -> None:
    from transformers import WhisperConfig, WhisperForConditionalGeneration

    config = WhisperConfig(
        vocab_size=128,
        num_mel_bins=8,
        encoder_layers=1,
        decoder_layers=1,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        d_model=16,
        encoder_ffn_dim=32,
        decoder_ffn_dim=32,
        max_target_positions=64,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
        decoder_start_token_id=3,
        suppress_tokens=None,
        begin_suppress_tokens=None,
    )
    model = WhisperForConditionalGeneration(config).eval()
    model.generate(torch.randn(2, 8, 3000), max_new_tokens=6, min_new_tokens=6)
    (timeline,) = seen
    assert (timeline.operation, timeline.model) == ("generate_content", "WhisperForConditionalGeneration")
    assert timeline.prompt_tokens is None, "sound is not counted in tokens"
    assert [child.output_tokens for child in timeline.children] == [6, 6]
    assert_adds_up(timeline)


def test_image_and_text_to_text(seen: list[Timeline]) -> None:
    from transformers import CLIPVisionConfig, LlavaConfig, LlavaForConditionalGeneration

    vision = CLIPVisionConfig(
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        image_size=28,
        patch_size=14,
        projection_dim=16,
    )
    config = LlavaConfig(
        vision_config=vision, text_config=tiny.qwen2().config, image_token_index=100, image_seq_length=4
    )
    model = LlavaForConditionalGeneration(config).eval()
    ids = torch.tensor([[10, 100, 100, 100, 100, 11, 12], [0, 10, 100, 100, 100, 100, 12]])
    output = model.generate(
        input_ids=ids, attention_mask=(ids != 0).long(), pixel_values=torch.randn(2, 3, 28, 28), max_new_tokens=5
    )
    (timeline,) = seen
    assert timeline.operation == "generate_content"
    assert [child.prompt_tokens for child in timeline.children] == [7, 6], "the places of an image are tokens"
    assert timeline.output_tokens == output[:, 7:].numel() == 10
    assert_adds_up(timeline)


class Straight(tiny.SlowQwen2):
    """As in musicgen: a ``generate`` of its own that calls the decoding method."""

    output_modalities = ("audio",)

    def generate(self, inputs: torch.Tensor, streamer: Any = None) -> torch.Tensor:
        from transformers import LogitsProcessorList, StoppingCriteriaList
        from transformers.generation.stopping_criteria import MaxLengthCriteria

        config, _ = self._prepare_generation_config(None, max_length=10, use_cache=False)
        self._prepare_special_tokens(config, True, device=inputs.device)
        with torch.no_grad():
            return self._sample(
                inputs,
                logits_processor=LogitsProcessorList(),
                stopping_criteria=StoppingCriteriaList([MaxLengthCriteria(10)]),
                generation_config=config,
                synced_gpus=False,
                streamer=streamer,
                use_cache=False,
                attention_mask=torch.ones_like(inputs),
            )


def test_a_generate_that_goes_straight_to_the_loop(seen: list[Timeline]) -> None:
    model = Straight(tiny.qwen2().config).eval()
    assert model.generate(tiny.prompt(2)).shape == (2, 10)
    error = RuntimeError()
    with pytest.raises(RuntimeError) as raised:
        model.generate(tiny.prompt(), streamer=tiny.Clock(1, error))
    assert raised.value is error
    timeline, failed = seen
    assert timeline.operation == "generate_content"
    assert (timeline.output_tokens, timeline.children) == (None, ()), "codes of sound are not rows of text"
    assert {phase.name for phase in timeline.phases()} >= {"prefill", "decode"}
    assert_adds_up(timeline)
    assert (failed.outcome, failed.error_type) == ("error", "RuntimeError")
