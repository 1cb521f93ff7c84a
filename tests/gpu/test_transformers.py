"""transformers on a real device: no wait is added, and the host's stamps agree with the device's events."""

from __future__ import annotations

import functools
import statistics
import warnings
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")
from transformers import Qwen2Config, Qwen2ForCausalLM  # noqa: E402  # only where it is installed

from otel_llm.testing import assert_adds_up  # noqa: E402
from tests.engines import tiny_transformers as tiny  # noqa: E402

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device (ROCm counts as one)")
TOKENS = 32
WAITS = "otel_llm.device.wait.prefill", "otel_llm.device.wait.decode"
MODES: dict[str, dict[str, Any]] = {
    "greedy": {},
    "sampling": {"do_sample": True},
    "beams": {"num_beams": 2},
    "prompt lookup": {"prompt_lookup_num_tokens": 3, "eos_token_id": tiny.EOS},
    "static cache and compiler": {"cache_implementation": "static"},
}


@pytest.fixture(scope="module")
def model() -> Iterator[Any]:
    """About 0.4 billion parameters: the device is busy for milliseconds per step."""
    config = Qwen2Config(
        vocab_size=32_000,
        hidden_size=1024,
        intermediate_size=4096,
        num_hidden_layers=24,
        num_attention_heads=16,
        num_key_value_heads=8,
        eos_token_id=None,
        pad_token_id=0,
    )
    torch.manual_seed(0)
    yield Qwen2ForCausalLM(config).to("cuda", torch.bfloat16).eval()
    torch.cuda.empty_cache()


def prompt(rows: int = 1, width: int = 512) -> Any:
    return (torch.arange(rows * width, device="cuda").reshape(rows, width) % 30_000) + 10


def synchronisations(model: Any, **arguments: Any) -> int:
    """Waits for the device in one call, as PyTorch reports them."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            model.generate(**arguments)
        finally:
            torch.cuda.set_sync_debug_mode("default")
    return Counter("synchronizing" in str(warning.message) for warning in caught)[True]


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("details", [(), (False, True)], ids=["default", "device timing"])
def test_no_wait_for_the_device_is_added(model: Any, mode: str, details: tuple[bool, ...]) -> None:
    arguments = {"inputs": prompt(), "max_new_tokens": TOKENS, **MODES[mode]}
    model.generate(**arguments)
    torch.manual_seed(1)
    plain = synchronisations(model, **arguments)
    assert plain >= TOKENS or mode == "prompt lookup", "PyTorch must report the library's own"
    with tiny.watched(*details) as seen:
        torch.manual_seed(1)
        assert synchronisations(model, **arguments) == plain + tiny.MASKS_KEPT
    assert len(seen) == 1


@pytest.mark.parametrize("rows", [1, 8])
def test_phases_agree_with_events_of_the_device(model: Any, rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The end of each step as the device has it: the median of several calls within one percent."""
    events: list[Any] = []
    original = Qwen2ForCausalLM.forward

    @functools.wraps(original)  # generate reads its signature
    def forward(self: Any, *args: Any, **kwargs: Any) -> Any:
        output = original(self, *args, **kwargs)
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        events.append(event)
        return output

    monkeypatch.setattr(Qwen2ForCausalLM, "forward", forward)
    arguments = {"inputs": prompt(rows), "max_new_tokens": TOKENS}
    model.generate(**arguments)
    errors = []
    for _ in range(7):
        events.clear()
        torch.cuda.synchronize()
        begin = torch.cuda.Event(enable_timing=True)
        begin.record()
        with tiny.watched() as seen:
            model.generate(**arguments)
        torch.cuda.synchronize()
        (timeline,) = seen
        assert_adds_up(timeline)
        found = {phase.name: phase.duration / 1e6 for phase in timeline.phases()}
        prefill, decode = begin.elapsed_time(events[0]), events[0].elapsed_time(events[-1])
        errors.append((abs(found["prefill"] / prefill - 1), abs(found["decode"] / decode - 1)))
    assert statistics.median(decode for _, decode in errors) < 0.01
    # Before the first pass the host prepares; on so short a prompt that is a part of the prefill that one sees.
    assert statistics.median(prefill for prefill, _ in errors) < 0.05


def test_a_large_batch_makes_the_host_wait(model: Any) -> None:
    arguments = {"inputs": prompt(32, 1024), "max_new_tokens": 8}
    model.generate(**arguments)
    with tiny.watched(False, True) as seen:
        model.generate(**arguments)
    (timeline,) = seen
    found = {phase.name: phase.duration / 1e9 for phase in timeline.phases()}
    prefill, decode = (float(timeline.attributes[name]) for name in WAITS)
    assert found["prefill"] / 2 < prefill <= found["prefill"], "the device computes while the host waits"
    assert 0 <= decode <= found["decode"]


@pytest.mark.parametrize("mode", MODES)
def test_results_are_unchanged(model: Any, mode: str) -> None:
    def tokens() -> Any:
        torch.manual_seed(2)
        return model.generate(prompt(), max_new_tokens=TOKENS, **MODES[mode])

    plain = tokens()
    with tiny.watched(False, True) as seen:
        assert torch.equal(tokens(), plain)
    assert seen[0].output_tokens == plain.shape[1] - 512
