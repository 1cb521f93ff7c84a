"""
Images in the prompt of a real vLLM, by its OpenAI server and by ``AsyncLLM``: where their processing and encoding go.

The frontend is in this process, where its processing is slowed down. The core and its worker are in processes of
their own, where the encoder is slowed down by what vLLM mixes into its worker; all share one clock.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import http.client
import io
import itertools
import json
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import otel_llm
from otel_llm.testing import assert_adds_up, recording
from otel_llm.timeline import Phase, Timeline
from tests.engines import slow, tiny_media, vllm_live
from tests.engines.tiny_media import IMAGE_TOKENS

pytestmark = pytest.mark.vllm
SECONDS = 0.4
TEXT = "A request waits"
PHASES = ["preprocess", "queue", "prefill", "decode", "postprocess"]
_shades = itertools.count()


class Frontend:
    """``AsyncLLM`` and vLLM's own server around it, in the event loop of a thread."""

    def __init__(self, model: Path) -> None:
        self.live = vllm_live.LiveEngine(
            model,
            load_format="dummy",
            worker_extension_cls=slow.WORKER,
            enable_mm_embeds=True,
        )
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.server = self.live.run(self._server())
        self.served = asyncio.run_coroutine_threadsafe(self.server.serve([self.listener]), self.live.loop)

    async def _server(self) -> Any:
        import uvicorn
        from vllm.utils.argparse_utils import FlexibleArgumentParser

        try:
            from vllm.entrypoints.launchers.api_server.app_state import init_app_state
            from vllm.entrypoints.launchers.app import build_app
            from vllm.entrypoints.launchers.cli_args import make_arg_parser
        except ImportError:  # before 0.30
            from vllm.entrypoints.openai.api_server import build_app, init_app_state
            from vllm.entrypoints.openai.cli_args import make_arg_parser

        engine = self.live.engine
        parser = make_arg_parser(FlexibleArgumentParser())
        args = parser.parse_args(["--model", engine.model_config.model, "--served-model-name", "tiny"])
        tasks = await engine.get_supported_tasks()
        app = build_app(args, tasks, engine.model_config)
        await init_app_state(engine, app.state, args, tasks)
        return uvicorn.Server(uvicorn.Config(app, log_level="critical", access_log=False, lifespan="off"))

    def close(self) -> None:
        self.server.should_exit = True
        self.served.result(30)
        self.listener.close()
        self.live.close()

    @contextlib.contextmanager
    def slow_encoder(self) -> Iterator[slow.Times]:
        """Of the worker; what is given is filled at the end."""
        times: slow.Times = []
        self._worker("slow_down", "model_runner.model.vision_model", "forward", SECONDS)
        try:
            yield times
        finally:
            times.extend(self._worker("speed_up"))

    def _worker(self, method: str, *args: Any) -> Any:
        (answer,) = self.live.run(self.live.engine.collective_rpc(method, args=args))
        return answer

    def generate(self, image: Any) -> int:
        """Ask without HTTP; gives the engine's count of the prompt's tokens."""
        from vllm import SamplingParams

        async def ask() -> Any:
            prompt = {"prompt": TEXT, "multi_modal_data": {"image": image}}
            params = SamplingParams(max_tokens=5, ignore_eos=True)
            async for item in self.live.engine.generate(prompt, params, f"r-{time.monotonic_ns()}"):
                last = item
            return last

        ids = self.live.run(ask()).prompt_token_ids
        assert ids[:IMAGE_TOKENS] == [self.live.engine.model_config.hf_config.image_token_index] * IMAGE_TOKENS
        return len(ids)

    def chat(self, image: Any = None) -> int:
        """Ask as a client does; gives the server's count of the prompt's tokens."""
        parts: list[dict[str, Any]] = [{"type": "text", "text": TEXT}]
        if image is not None:
            content = io.BytesIO()
            image.save(content, "png")
            url = f"data:image/png;base64,{base64.b64encode(content.getvalue()).decode()}"
            parts.append({"type": "image_url", "image_url": {"url": url}})
        body = {
            "model": "tiny",
            "max_completion_tokens": 5,
            "ignore_eos": True,
            "messages": [{"role": "user", "content": parts}],
        }
        connection = http.client.HTTPConnection(*self.listener.getsockname(), timeout=120)
        with contextlib.closing(connection):
            connection.request("POST", "/v1/chat/completions", json.dumps(body), {"content-type": "application/json"})
            answer = json.load(connection.getresponse())
        assert answer["usage"]["completion_tokens"] == 5
        return int(answer["usage"]["prompt_tokens"])


@pytest.fixture(scope="module")
def frontend(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Frontend]:
    otel_llm.instrument()
    frontend = Frontend(tiny_media.seeing(tiny_model, tmp_path_factory.mktemp("seeing") / "model"))
    yield frontend
    frontend.close()
    otel_llm.uninstrument()


@pytest.fixture(params=["generate", "chat"])
def ask(frontend: Frontend, request: pytest.FixtureRequest) -> Callable[[Any], int]:
    """One way to ask or the other."""
    return getattr(frontend, request.param)  # type: ignore[no-any-return]


def picture() -> Any:
    """Each is another one: vLLM keeps what it has processed and encoded."""
    from PIL import Image

    return Image.new("RGB", (40, 40), (next(_shades), 0, 0))


def one(ask: Callable[[Any], int], image: Any) -> tuple[Timeline, dict[str, Phase]]:
    """Ask, and take the only request and its phases after those of the socket."""
    with recording() as seen:
        tokens = ask(image)
        limit = time.monotonic() + 10
        while not seen and time.monotonic() < limit:
            time.sleep(0.01)
        time.sleep(0.1)
    (request,) = seen
    assert_adds_up(request)
    assert (request.outcome, request.model, request.output_tokens) == ("ok", "tiny", 5)
    assert request.operation == ("chat" if ask.__name__ == "chat" else "text_completion")
    assert request.prompt_tokens == tokens
    phases = {phase.name: phase for phase in request.phases() if phase.name in PHASES}
    assert list(phases) == PHASES
    return request, phases


def test_the_places_of_an_image_are_tokens_of_the_prompt(frontend: Frontend) -> None:
    text, _ = one(frontend.chat, None)
    seeing, _ = one(frontend.chat, picture())
    assert (text.prompt_tokens or 0) + IMAGE_TOKENS == seeing.prompt_tokens
    one(frontend.generate, picture())


def test_a_delay_of_its_processing_is_preprocess(ask: Callable[[Any], int]) -> None:
    from vllm.model_executor.models.blip2 import Blip2MultiModalProcessor

    with slow.slowed(Blip2MultiModalProcessor, "apply", SECONDS) as processed:
        _, phases = one(ask, picture())
    ((began, ended),) = processed
    assert phases["preprocess"].start <= began < ended <= phases["preprocess"].end
    assert ended - began >= SECONDS * 1e9


def test_a_delay_of_its_encoder_is_prefill(frontend: Frontend, ask: Callable[[Any], int]) -> None:
    with frontend.slow_encoder() as encoded:
        _, phases = one(ask, picture())
    ((began, ended),) = encoded
    assert phases["prefill"].start <= began < ended <= phases["prefill"].end
    assert ended - began >= SECONDS * 1e9


def test_an_image_that_its_sender_has_encoded(frontend: Frontend) -> None:
    """The same places in the prompt, and no encoder."""
    import torch

    with frontend.slow_encoder() as encoded:
        one(frontend.generate, torch.randn(1, IMAGE_TOKENS, frontend.live.engine.model_config.get_hidden_size()))
    assert encoded == []
