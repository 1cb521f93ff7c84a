"""Token counts of ``model.generate``: equal to the ids that were asked for and returned, in every mode."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch

from otel_llm.timeline import Timeline
from tests.engines import tiny_transformers as tiny

WIDTH = 6


@pytest.fixture(scope="module")
def model() -> tiny.SlowQwen2:
    return tiny.qwen2()


@pytest.fixture(scope="module")
def translator() -> Any:
    return tiny.t5()


@pytest.fixture
def seen() -> Iterator[list[Timeline]]:
    with tiny.watched() as timelines:
        yield timelines


def padded(rows: int) -> dict[str, torch.Tensor]:
    """Row ``r`` begins with ``r`` padding tokens."""
    ids = tiny.prompt(rows, WIDTH)
    mask = torch.ones_like(ids)
    for row in range(rows):
        ids[row, :row], mask[row, :row] = tiny.PAD, 0
    return {"input_ids": ids, "attention_mask": mask}


@pytest.mark.parametrize(
    ("arguments", "total"),
    [
        ({}, 7),
        ({"do_sample": True}, 7),
        ({"do_sample": True, "num_return_sequences": 4}, 28),
        ({"num_beams": 4}, 7),
        ({"num_beams": 3, "num_return_sequences": 2}, 14),
        ({"num_beams": 3, "do_sample": True}, 7),
        ({"prompt_lookup_num_tokens": 3, "eos_token_id": 1}, 7),
        ({"use_cache": False}, 7),
        ({"cache_implementation": "static"}, 7),
        ({"prefill_chunk_size": 4, "attention_mask": torch.ones(1, WIDTH)}, 7),
    ],
)
def test_output_tokens_are_those_returned(
    model: tiny.SlowQwen2, seen: list[Timeline], arguments: dict[str, Any], total: int
) -> None:
    output = model.generate(tiny.prompt(), max_new_tokens=7, **arguments)
    (timeline,) = seen
    assert timeline.output_tokens == total == output[:, WIDTH:].numel()
    assert timeline.prompt_tokens == WIDTH
    assert set(timeline.finish_reasons) == {"length"}
    assert sum(child.output_tokens or 0 for child in timeline.children) == (total if output.shape[0] > 1 else 0)


@pytest.mark.parametrize("pad", [tiny.PAD, tiny.EOS])
@pytest.mark.parametrize("do_sample", [False, True])
def test_rows_of_a_padded_batch(model: tiny.SlowQwen2, seen: list[Timeline], pad: int, do_sample: bool) -> None:
    ends = [5, 9, 99]
    model.generate(
        **padded(3),
        max_new_tokens=12,
        eos_token_id=tiny.EOS,
        pad_token_id=pad,
        do_sample=do_sample,
        logits_processor=[tiny.Script(ends, WIDTH)],
    )
    (timeline,) = seen
    assert [child.output_tokens for child in timeline.children] == [5, 9, 12]
    assert [child.prompt_tokens for child in timeline.children] == [6, 5, 4]
    assert [child.finish_reasons for child in timeline.children] == [("stop",), ("stop",), ("length",)]
    assert (timeline.prompt_tokens, timeline.output_tokens) == (15, 26)


@pytest.mark.parametrize("pad", [tiny.PAD, tiny.EOS])
def test_a_criterion_of_the_user_ends_rows(model: tiny.SlowQwen2, seen: list[Timeline], pad: int) -> None:
    arguments = {**padded(3), "max_new_tokens": 12, "pad_token_id": pad}
    script = [tiny.Script([99, 5, 99], WIDTH)]
    stop = [tiny.StopRows([4, 7, 2], WIDTH)]
    model.generate(**arguments, eos_token_id=tiny.EOS, stopping_criteria=stop, logits_processor=script)
    # Without an end token rows that have stopped go on until all have: what is returned counts.
    output = model.generate(**arguments, stopping_criteria=stop, logits_processor=script)
    ended, ran_on = seen
    assert [child.output_tokens for child in ended.children] == [4, 5, 2]
    assert [child.output_tokens for child in ran_on.children] == [7, 7, 7] == [output.shape[1] - WIDTH] * 3


def test_samples_of_several_prompts_count_each_prompt_once(model: tiny.SlowQwen2, seen: list[Timeline]) -> None:
    model.generate(**padded(2), max_new_tokens=3, do_sample=True, num_return_sequences=3)
    (timeline,) = seen
    assert [child.prompt_tokens for child in timeline.children] == [6, 6, 6, 5, 5, 5]
    assert (timeline.prompt_tokens, timeline.output_tokens) == (11, 18)


@pytest.mark.parametrize("pad", [tiny.PAD, tiny.EOS])
def test_beams_of_unequal_length(model: tiny.SlowQwen2, seen: list[Timeline], pad: int) -> None:
    # A frequent end token: the beams of a random model then end at different steps.
    likely = {"sequence_bias": {(tiny.EOS,): 4.0}}
    output = model.generate(
        **padded(3),
        max_new_tokens=20,
        num_beams=4,
        num_return_sequences=3,
        eos_token_id=tiny.EOS,
        pad_token_id=pad,
        return_dict_in_generate=True,
        output_scores=True,
        output_logits=True,
        **likely,
    )
    truth = (output.beam_indices >= 0).sum(1).tolist()
    assert len(set(truth)) > 1, "the case is pointless if all are of one length"
    (timeline,) = seen
    assert [child.output_tokens for child in timeline.children] == truth
    assert [child.prompt_tokens for child in timeline.children] == [6, 6, 6, 5, 5, 5, 4, 4, 4]
    assert timeline.prompt_tokens == 15
    # No hypothesis is final before the search is over.
    assert {child.ended for child in timeline.children} == {timeline.last_token}
    assert timeline.last_token is not None
    assert timeline.last_token > model.forwards[-1]


def test_beams_with_a_criterion_of_the_user_are_unknown(model: tiny.SlowQwen2, seen: list[Timeline]) -> None:
    stop = [tiny.StopRows([4] * 8, WIDTH)]  # it sees twice as many candidates as beams
    model.generate(tiny.prompt(), max_new_tokens=9, num_beams=4, num_return_sequences=2, stopping_criteria=stop)
    (timeline,) = seen
    assert timeline.output_tokens is None
    assert not timeline.children
    assert timeline.prompt_tokens == WIDTH
    assert timeline.time_to_first_token() is not None


def test_embeddings_as_prompt(model: tiny.SlowQwen2, seen: list[Timeline]) -> None:
    inputs = padded(2)
    embeddings = model.get_input_embeddings()(inputs["input_ids"])
    output = model.generate(inputs_embeds=embeddings, attention_mask=inputs["attention_mask"], max_new_tokens=5)
    (timeline,) = seen
    assert (timeline.prompt_tokens, timeline.output_tokens) == (11, 10)
    assert output.numel() == 10


@pytest.mark.parametrize("beams", [1, 3])
def test_encoder_decoder(translator: Any, seen: list[Timeline], beams: int) -> None:
    translator.generate(**padded(2), max_new_tokens=5, min_new_tokens=5, num_beams=beams)
    translator.generate(tiny.prompt(1, 9), max_new_tokens=4, min_new_tokens=4, num_beams=beams)
    batch, single = seen
    assert (batch.prompt_tokens, batch.output_tokens) == (11, 10)
    assert (single.prompt_tokens, single.output_tokens) == (9, 4)


def test_a_limit_in_time_leaves_the_reason_open(model: tiny.SlowQwen2, seen: list[Timeline]) -> None:
    model.delays = [0.01]
    output = model.generate(tiny.prompt(), max_new_tokens=400, max_time=0.1)
    model.delays = []
    (timeline,) = seen
    assert timeline.output_tokens == output.shape[1] - WIDTH < 400
    assert timeline.finish_reasons == ()
