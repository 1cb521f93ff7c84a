"""Models beyond text, with loops and ``generate`` methods of their own."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import pytest
import torch

from otel_llm.engines import _transformers_here as here
from otel_llm.engines._transformers_loop import Loop
from otel_llm.testing import assert_adds_up
from tests.engines import tiny_transformers as tiny
from tests.engines.sabotage import fail
from tests.engines.test_transformers_modes import slowed


@pytest.fixture
def seen() -> Iterator[tiny.Seen]:
    with tiny.watched() as timelines:
        yield timelines


def whisper() -> Any:
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
    torch.manual_seed(1)
    model = WhisperForConditionalGeneration(config).eval()
    model.generation_config.no_timestamps_token_id = 100
    return model


def test_speech_to_text(seen: tiny.Seen, monkeypatch: pytest.MonkeyPatch) -> None:
    model = whisper()
    heard = slowed(model.get_encoder(), monkeypatch, 0.05)
    model.generate(torch.randn(2, 8, 3000), max_new_tokens=6, min_new_tokens=6)
    (timeline,) = seen
    assert (timeline.operation, timeline.model) == ("generate_content", "WhisperForConditionalGeneration")
    assert timeline.prompt_tokens is None, "sound is not counted in tokens"
    assert [child.output_tokens for child in timeline.children] == [6, 6]
    assert timeline.scheduled is not None
    assert timeline.first_token is not None
    assert timeline.scheduled <= heard[0][0] < heard[0][1] <= timeline.first_token
    assert_adds_up(timeline)


def test_long_speech_is_one_request_for_each_piece(seen: tiny.Seen, monkeypatch: pytest.MonkeyPatch) -> None:
    """A loop of the model's own around ``generate``: what is between the pieces belongs to none of them."""
    model = whisper()
    model.generation_config.suppress_tokens = list(range(101, 128))  # times, which would cut the pieces short
    heard = slowed(model.get_encoder(), monkeypatch, 0.05)
    model.generate(torch.randn(1, 8, 7000), return_timestamps=True, max_new_tokens=5, min_new_tokens=5)
    assert len(seen) == len(heard) == 3
    for timeline, (begin, end) in zip(seen, heard, strict=True):
        assert timeline.scheduled is not None
        assert timeline.first_token is not None
        assert timeline.scheduled <= begin < end <= timeline.first_token
        assert_adds_up(timeline)
    assert all(left.ended <= right.start for left, right in itertools.pairwise(seen))


def tower(model: Any) -> Any:
    """Whatever looks at the pictures."""
    return next(module for name, module in model.named_modules() if name.endswith("vision_tower"))


def test_image_and_text_to_text(seen: tiny.Seen, monkeypatch: pytest.MonkeyPatch) -> None:
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
    looked = slowed(tower(model), monkeypatch, 0.05)
    ids = torch.tensor([[10, 100, 100, 100, 100, 11, 12], [0, 10, 100, 100, 100, 100, 12]])
    output = model.generate(
        input_ids=ids, attention_mask=(ids != 0).long(), pixel_values=torch.randn(2, 3, 28, 28), max_new_tokens=5
    )
    (timeline,) = seen
    assert timeline.operation == "generate_content"
    assert [child.prompt_tokens for child in timeline.children] == [7, 6], "the places of an image are tokens"
    assert timeline.output_tokens == output[:, 7:].numel() == 10
    assert timeline.scheduled is not None
    assert timeline.first_token is not None
    assert len(looked) == 1
    assert timeline.scheduled <= looked[0][0] < looked[0][1] <= timeline.first_token
    assert_adds_up(timeline)


def test_music(seen: tiny.Seen, monkeypatch: pytest.MonkeyPatch) -> None:
    """A real model whose ``generate`` goes straight to the loop, and makes sound of its codes afterwards."""
    from transformers import (
        EncodecConfig,
        MusicgenConfig,
        MusicgenDecoderConfig,
        MusicgenForConditionalGeneration,
        T5Config,
    )

    text = T5Config(vocab_size=64, d_model=16, d_kv=8, d_ff=32, num_layers=1, num_heads=2)
    codec = EncodecConfig(
        codebook_size=32,
        codebook_dim=8,
        hidden_size=8,
        num_filters=2,
        num_lstm_layers=1,
        upsampling_ratios=[2, 2],
        target_bandwidths=[240.0],  # four codebooks
    )
    decoder = MusicgenDecoderConfig(
        vocab_size=32,
        hidden_size=16,
        ffn_dim=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_codebooks=4,
        pad_token_id=32,
        bos_token_id=32,
    )
    parts = MusicgenConfig(text_encoder=text.to_dict(), audio_encoder=codec.to_dict(), decoder=decoder.to_dict())
    model = MusicgenForConditionalGeneration(parts).eval()
    model.generation_config.decoder_start_token_id = model.generation_config.pad_token_id = 32
    read = slowed(model.text_encoder, monkeypatch, 0.05)
    steps = slowed(model.decoder, monkeypatch, 0.02)
    model.generate(input_ids=torch.arange(6).reshape(1, 6), max_new_tokens=8, do_sample=False)
    (timeline,) = seen
    assert timeline.model == "MusicgenForConditionalGeneration"
    if hasattr(model, "output_modalities"):  # old versions do not say what comes out
        assert timeline.operation == "generate_content"
    assert timeline.output_tokens is None
    assert timeline.first_token is not None
    assert timeline.last_token is not None
    assert timeline.scheduled is not None
    assert read[0][1] <= timeline.scheduled, "what comes before its loop is not seen"
    inside = [(begin, end) for begin, end in steps if begin >= timeline.scheduled]
    assert inside[0][1] <= timeline.first_token <= inside[1][0]
    assert inside[-1][1] <= timeline.last_token
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


def test_a_generate_that_goes_straight_to_the_loop(seen: tiny.Seen) -> None:
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


@pytest.mark.expects_faults
def test_a_fault_at_the_end_of_such_a_loop_keeps_no_later_call_from_being_told(
    seen: tiny.Seen, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Seen to fail without the ``finally`` around it: all that came after was taken for a part of that call."""
    with monkeypatch.context() as broken:
        broken.setattr(Loop, "left", fail)
        Straight(tiny.qwen2().config).eval().generate(tiny.prompt(2))
    tiny.qwen2().generate(tiny.prompt(), max_new_tokens=3)
    assert here.generation.get() is None
    assert [timeline.output_tokens for timeline in seen] == [None, 3]
