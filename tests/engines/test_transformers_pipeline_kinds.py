"""Pipelines of other kinds: single inputs, lists, batches and generators, with known delays around generate."""

from __future__ import annotations

import functools
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from transformers import AutoTokenizer, CLIPVisionConfig, LlavaConfig, LlavaForConditionalGeneration, LlavaProcessor

from otel_llm.testing import assert_adds_up
from tests.engines import tiny_transformers as tiny

SHORT: dict[str, Any] = {"max_new_tokens": 4, "do_sample": False}


def tokenizer(folder: Path) -> Any:
    loaded = AutoTokenizer.from_pretrained(folder, padding_side="left")
    loaded.add_special_tokens({"additional_special_tokens": ["<image>"]})
    loaded.model_input_names = ["input_ids", "attention_mask"]
    loaded.chat_template = None
    return loaded


@pytest.fixture(scope="module")
def pictures(tiny_model: Path) -> Any:
    from PIL import Image

    words = tokenizer(tiny_model)
    text = tiny.qwen2().config
    text.vocab_size = len(words)
    vision = CLIPVisionConfig(
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        image_size=28,
        patch_size=14,
        projection_dim=16,
    )
    mark = words.convert_tokens_to_ids("<image>")
    config = LlavaConfig(vision_config=vision, text_config=text, image_token_index=mark, image_seq_length=4)
    torch.manual_seed(1)
    # The one that needs no torchvision has had two names.
    reader = getattr(transformers, "CLIPImageProcessorPil", None) or transformers.CLIPImageProcessor
    processor = LlavaProcessor(
        image_processor=reader(size={"shortest_edge": 28}, crop_size={"height": 28, "width": 28}),
        tokenizer=words,
        patch_size=14,
        vision_feature_select_strategy="default",
        image_token="<image>",
        num_additional_image_tokens=1,
    )
    model = LlavaForConditionalGeneration(config).eval()
    pipe = transformers.pipeline("image-text-to-text", model=model, processor=processor)
    return functools.partial(pipe, images=[Image.new("RGB", (40, 40))])


def delayed(original: Any, seconds: float) -> Any:
    def later(*args: Any, **kwargs: Any) -> Any:
        time.sleep(seconds)
        return original(*args, **kwargs)

    return later


@pytest.fixture
def slow(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Known delays around generate."""

    def slowed(cls: Any) -> None:
        for name, seconds in (("preprocess", 0.06), ("postprocess", 0.04)):
            owner = next(parent for parent in cls.__mro__ if name in vars(parent))
            monkeypatch.setattr(owner, name, delayed(vars(owner)[name], seconds))

    return slowed


def parts(timeline: Any) -> dict[str, int]:
    assert_adds_up(timeline)
    found = {phase.name: phase.duration for phase in timeline.phases()}
    assert list(found) == ["preprocess", "prefill", "decode", "postprocess"]
    assert found["preprocess"] >= 60_000_000
    assert found["postprocess"] >= 40_000_000
    return found


def test_pictures(pictures: Any, slow: Any) -> None:
    plain = pictures(text="<image> what", **SHORT)
    slow(transformers.ImageTextToTextPipeline)
    with tiny.watched() as seen:
        before = time.monotonic_ns()
        assert pictures(text="<image> what", **SHORT) == plain
        wall = time.monotonic_ns() - before
    (timeline,) = seen
    found = parts(timeline)
    assert found["prefill"] + found["decode"] <= wall - 100_000_000
    assert timeline.duration <= wall
    assert (timeline.operation, timeline.output_tokens) == ("generate_content", 4)


def test_several_pictures(pictures: Any, slow: Any) -> None:
    two = pictures.keywords["images"] * 2
    ask = {"images": two, "text": ["<image> what", "<image> who is it"], **SHORT}
    plain = [pictures(**ask), pictures(**ask, batch_size=2)]
    slow(transformers.ImageTextToTextPipeline)
    with tiny.watched() as seen:
        assert [pictures(**ask), pictures(**ask, batch_size=2)] == plain
    assert [len(timeline.children) for timeline in seen] in ([0, 0, 2], [2, 2]), "versions differ"
    assert sum(timeline.output_tokens or 0 for timeline in seen) == 16
    for timeline in seen:
        parts(timeline)


KINDS = ("text2text-generation", "summarization", "translation")


@pytest.mark.parametrize("kind", KINDS)
def test_text_to_text(tiny_model: Path, slow: Any, kind: str) -> None:
    if not hasattr(transformers, "Text2TextGenerationPipeline"):
        pytest.skip("left the library in version 5")
    words = tokenizer(tiny_model)
    model = tiny.t5(vocabulary=len(words))
    pipe = transformers.pipeline(kind, model=model, tokenizer=words, device="cpu")
    texts = ["the queue", "a longer text than the first", "decode"]
    short = {**SHORT, "min_new_tokens": 4, "min_length": 0, "max_length": None}
    short = {name: value for name, value in short.items() if value is not None}

    def lazily() -> Iterator[str]:
        yield from texts

    def everything() -> list[Any]:
        return [pipe(texts[0], **short), pipe(texts, batch_size=2, **short), list(pipe(lazily(), **short))]

    plain = everything()
    slow(type(pipe))
    with tiny.watched() as seen:
        assert everything() == plain
    assert [len(timeline.children) for timeline in seen] == [0, 2, 0, 0, 0, 0]
    for timeline in seen:
        parts(timeline)
    assert [timeline.prompt_tokens for timeline in seen[-3:]] == [len(words(text).input_ids) for text in texts]
    assert sum(timeline.output_tokens or 0 for timeline in seen) == 7 * 4
