"""The hooks on ``model.generate`` never change what it does: faults, exceptions, syncs, graphs, undo."""

from __future__ import annotations

import gc
import inspect
import weakref
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from otel_llm import faults
from otel_llm.engines import _transformers_here as here
from otel_llm.engines import _transformers_loop as loop_module
from otel_llm.engines.transformers import ENGINE
from otel_llm.patching import Patcher, Probe, resolve
from otel_llm.testing import swallowed
from tests.engines import tiny_transformers as tiny
from tests.engines.sabotage import POSITIONS, armed, fail

BATCH: dict[str, Any] = {
    "inputs": tiny.prompt(3),
    "max_new_tokens": 8,
    "eos_token_id": tiny.EOS,
    "logits_processor": [tiny.Script([5, 7, 3], 6)],
}


@pytest.fixture(scope="module")
def model() -> tiny.SlowQwen2:
    return tiny.qwen2()


def everything(model: tiny.SlowQwen2) -> list[torch.Tensor]:
    """One call through each hook that this version has."""
    torch.manual_seed(3)
    return [
        model.generate(**BATCH),
        model.generate(**BATCH, stopping_criteria=[tiny.StopRows([4, 9, 2], 6)]),
        model.generate(tiny.prompt(), max_new_tokens=6, do_sample=True),
        model.generate(tiny.prompt(), max_new_tokens=6, num_beams=3),
        model.generate(tiny.prompt(), max_new_tokens=6, assistant_model=tiny.qwen2(hidden=32)),
    ]


@pytest.fixture(scope="module")
def expected(model: tiny.SlowQwen2) -> list[torch.Tensor]:
    return everything(model)


def same(left: list[torch.Tensor], right: list[torch.Tensor]) -> bool:
    return len(left) == len(right) and all(torch.equal(a, b) for a, b in zip(left, right, strict=True))


@pytest.mark.expects_faults
@pytest.mark.parametrize("position", POSITIONS[:2])
def test_a_hook_that_fails_changes_nothing(
    model: tiny.SlowQwen2, expected: list[torch.Tensor], position: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(faults, "BREAKER_LIMIT", 10**9)
    with swallowed() as errors, armed(ENGINE, position):
        assert same(everything(model), expected)
    for method in ("generate", "_sample", "_beam_search", "_assisted_decoding"):
        assert f"transformers.GenerationMixin.{method}" in {place for place, _ in errors}


@pytest.mark.expects_faults
def test_what_hears_of_each_step_may_fail(
    model: tiny.SlowQwen2, expected: list[torch.Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(faults, "BREAKER_LIMIT", 10**9)
    monkeypatch.setattr(loop_module.Loop, "_judged", fail)
    entered = loop_module.Loop.entered
    never = property(lambda _self: False, lambda _self, _value: None)
    monkeypatch.setattr(loop_module.Loop, "settled", never, raising=False)
    monkeypatch.setattr(loop_module.Loop, "entered", lambda *given: (entered(*given), fail)[1])
    with swallowed() as errors, tiny.watched() as seen:
        assert same(everything(model), expected)
    assert {timeline.time_to_first_token() for timeline in seen} == {None}
    for method in ("_has_unfinished_sequences", "StoppingCriteriaList"):
        assert f"transformers.{method}" in {place for place, _ in errors}


@pytest.mark.expects_faults
@pytest.mark.parametrize("part", ["capture", "counts", "emit"])
def test_parts_that_fail_change_nothing(
    model: tiny.SlowQwen2, expected: list[torch.Tensor], part: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = tiny.Seen()
    if part == "counts":
        monkeypatch.setattr(loop_module.Loop, "ask", fail)
    patcher = Patcher(
        ENGINE,
        fail if part == "emit" else seen.take,
        fail if part == "capture" else lambda **_: None,
        lambda: None,
    )
    with swallowed() as errors:
        patcher.arm()
        try:
            assert same(everything(model), expected)
        finally:
            patcher.undo()
    assert len(errors) >= (3 if part == "counts" else 5), "the device is asked for rows that may differ"
    assert {str(error) for _, error in errors} == {"broken"}
    assert here.generation.get() is None
    assert len(seen) == (5 if part == "counts" else 0)
    assert all(timeline.time_to_first_token() for timeline in seen), "what is known is still told"
    assert [timeline.output_tokens for timeline in seen] == [None, None, 6, 6, 6][: len(seen)]
    assert {timeline.prompt_tokens for timeline in seen} <= ({None} if tiny.MASKS_KEPT else {6, 18})


@pytest.mark.parametrize(
    ("error", "outcome", "reason"),
    [(RuntimeError("no"), "error", "RuntimeError"), (KeyboardInterrupt(), "abort", "cancelled")],
)
def test_an_exception_of_the_host_passes_unchanged(
    model: tiny.SlowQwen2, error: BaseException, outcome: str, reason: str
) -> None:
    with tiny.watched() as seen:
        with pytest.raises(type(error)) as raised:
            model.generate(tiny.prompt(), max_new_tokens=9, streamer=tiny.Clock(5, error))
        assert raised.value is error
        model.generate(tiny.prompt(), max_new_tokens=2)
    cut, after = seen
    assert (cut.outcome, cut.error_type) == (outcome, reason)
    assert [phase.name for phase in cut.phases()] == ["prefill", "decode"]
    assert cut.output_tokens == 4, "the fifth step was not completed"
    assert cut.prompt_tokens == (None if tiny.MASKS_KEPT else 6), "the device is not asked after a failure"
    assert sum(phase.duration for phase in cut.phases()) == cut.duration
    assert after.outcome == "ok"
    assert after.output_tokens == 2


def test_a_call_that_is_refused(model: tiny.SlowQwen2) -> None:
    with tiny.watched() as seen, pytest.raises(ValueError, match="beam"):
        model.generate(tiny.prompt(), max_new_tokens=2, num_beams=2, streamer=tiny.Clock())
    (timeline,) = seen
    assert (timeline.outcome, timeline.error_type, timeline.output_tokens) == ("reject", "ValueError", None)
    assert timeline.time_to_first_token() is None


class Syncs(TorchDispatchMode):
    """Counts reads of a scalar, each of which waits for the device."""

    def __init__(self) -> None:
        super().__init__()
        self.reads = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.reads += func is torch.ops.aten._local_scalar_dense.default
        return func(*args, **(kwargs or {}))


def syncs(model: tiny.SlowQwen2, monkeypatch: pytest.MonkeyPatch, **arguments: Any) -> tuple[int, int]:
    """(scalar reads, copies to a list) of one call."""
    copies = []
    original = torch.Tensor.tolist
    with monkeypatch.context() as patched, Syncs() as mode:
        patched.setattr(torch.Tensor, "tolist", lambda self: copies.append(1) or original(self))
        model.generate(**arguments)
    return mode.reads, len(copies)


@pytest.mark.parametrize(
    ("arguments", "after_the_loop"),
    [
        ({"inputs": tiny.prompt(), "eos_token_id": tiny.EOS}, 0),
        ({"inputs": tiny.prompt(), "num_beams": 3, "eos_token_id": tiny.EOS}, 0),
        ({"inputs": tiny.prompt(), "prompt_lookup_num_tokens": 2, "eos_token_id": tiny.EOS}, 0),
        ({"inputs": tiny.prompt(4)}, 0),
        ({"inputs": tiny.prompt(4), "eos_token_id": tiny.EOS}, 1),
    ],
)
def test_no_step_waits_for_the_device_again(
    model: tiny.SlowQwen2, monkeypatch: pytest.MonkeyPatch, arguments: dict[str, Any], after_the_loop: int
) -> None:
    arguments = {"max_new_tokens": 20, **arguments}
    reads, copies = syncs(model, monkeypatch, **arguments)
    assert reads >= 20, "the probe must see the library's own syncs"
    with tiny.watched():
        assert syncs(model, monkeypatch, **arguments) == (reads, copies + (after_the_loop or tiny.MASKS_KEPT))


def test_a_compiled_graph_is_the_same() -> None:
    from transformers.generation.configuration_utils import CompileConfig

    def graphs() -> list[int]:
        nodes: list[int] = []

        def backend(graph: torch.fx.GraphModule, _: Any, **options: Any) -> Any:
            nodes.append(len(graph.graph.nodes))
            return graph.forward

        torch.compiler.reset()
        config = CompileConfig(fullgraph=True, backend=backend)
        config._compile_all_devices = True  # else the library compiles on accelerators only
        fresh = tiny.plain_qwen2()
        output = fresh.generate(
            tiny.prompt(), max_new_tokens=5, cache_implementation="static", compile_config=config, disable_compile=False
        )
        assert output.shape[1] == 11
        return nodes

    plain = graphs()
    with tiny.watched() as seen:
        measured = graphs()
    assert plain
    assert measured == plain
    assert seen[0].output_tokens == 5
    assert seen[0].time_to_first_token()


@pytest.mark.parametrize("rows", [1, 3])
def test_what_waits_to_be_recorded_holds_no_model_and_no_tensor(rows: int) -> None:
    """Whoever drops a model wants its memory back now. Seen red without ``release``, and with the model kept."""
    drafts: list[Any] = []
    patcher = Patcher(ENGINE, drafts.append, lambda headers=None, carried=None: None, lambda: False)
    patcher.arm()
    try:
        model, inputs = tiny.qwen2(), tiny.prompt(rows)
        mask = torch.ones_like(inputs)
        script = [tiny.Script([5, 7, 3][:rows], 6)]
        stop = [tiny.StopRows([4, 9, 2][:rows], 6)]
        output = model.generate(
            inputs,
            attention_mask=mask,
            max_new_tokens=8,
            eos_token_id=tiny.EOS,
            logits_processor=script,
            stopping_criteria=stop,
        )
    finally:
        patcher.undo()
    gone = [weakref.ref(thing) for thing in (model, inputs, mask, output, stop[0])]
    del model, inputs, mask, output, stop, script
    gc.collect()
    assert [ref() for ref in gone] == [None] * 5
    timeline = drafts[0].timeline()
    assert timeline.output_tokens == sum([4, 7, 2][:rows])
    assert timeline.prompt_tokens == 6 * rows


def test_undo_restores_the_very_same_objects() -> None:
    places = [resolve(hook) for hook in ENGINE.hooks(Probe(print, print, print, None))]  # type: ignore[arg-type]
    before = [(place[0], place[1], vars(place[0]).get(place[1])) for place in places if place]
    functions = [(parent, name) for parent, name, _ in before if callable(getattr(parent, name))]
    signatures = [inspect.signature(getattr(parent, name)) for parent, name in functions]
    with tiny.watched():
        assert all(vars(parent).get(name) is not own for parent, name, own in before)
        # generate itself looks at signatures
        assert [inspect.signature(getattr(parent, name)) for parent, name in functions] == signatures
    assert all(vars(parent).get(name) is own for parent, name, own in before)
    assert len(before) >= 6
