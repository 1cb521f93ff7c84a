"""
A generate loop of your own, in plain PyTorch: accounted for with one decorator.

    python examples/own_loop.py

Three requests share one "GPU" (a lock), so the second and third wait: watch
their time move to `queue`. Set OTEL_EXPORTER_OTLP_ENDPOINT to send it all to a
collector as well.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator

import torch

import otel_llm

GPU = threading.Lock()


class TinyRecurrentModel(torch.nn.Module):
    """Any model will do: this one keeps a hidden state instead of a KV cache."""

    def __init__(self, vocabulary: int = 256, width: int = 512) -> None:
        super().__init__()
        self.embed = torch.nn.Embedding(vocabulary, width)
        self.cell = torch.nn.GRU(width, width, num_layers=2, batch_first=True)
        self.head = torch.nn.Linear(width, vocabulary)

    def forward(self, ids: torch.Tensor, state: torch.Tensor | None = None) -> tuple[torch.Tensor, torch.Tensor]:
        hidden, state = self.cell(self.embed(ids), state)
        return self.head(hidden[:, -1]), state


@otel_llm.measured(model="tiny-gru")
def stream(model: TinyRecurrentModel, prompt: str, limit: int) -> Iterator[int]:
    """Each item is a token: the first one ends the prefill, the last one the decode."""
    with torch.inference_mode():
        logits, state = model(torch.tensor([list(prompt.encode())]))
        for _ in range(limit):
            token = logits.argmax(-1, keepdim=True)
            yield int(token)
            logits, state = model(token, state)


def serve(model: TinyRecurrentModel, prompt: str, limit: int) -> None:
    """The same loop, marked by hand, because it has to wait for its turn."""
    with otel_llm.request(model="tiny-gru", operation="chat") as request, torch.inference_mode(), GPU:
        request.scheduled()
        request.prompt(tokens=len(prompt))
        logits, state = model(torch.tensor([list(prompt.encode())]))
        for _ in range(limit):
            token = logits.argmax(-1, keepdim=True)
            request.tokens(1)
            logits, state = model(token, state)


def show(timeline: otel_llm.Timeline) -> None:
    parts = "  ".join(f"{phase.name} {phase.duration / 1e6:7.1f}" for phase in timeline.phases())
    unaccounted = timeline.duration - sum(phase.duration for phase in timeline.phases())
    print(f"{timeline.operation:<16} {timeline.output_tokens:>3} tokens {timeline.duration / 1e6:7.1f} ms = {parts}"
          f"  (unaccounted {unaccounted} ns)")  # fmt: skip


def main() -> None:
    if "OTEL_EXPORTER_OTLP_ENDPOINT" not in os.environ:
        os.environ |= {"OTEL_TRACES_EXPORTER": "none", "OTEL_METRICS_EXPORTER": "none"}
    otel_llm.instrument(service_name="own-loop")
    otel_llm.add_sink(show)
    torch.manual_seed(0)
    model = TinyRecurrentModel().eval()
    print("streamed:", bytes(stream(model, "Once upon a time", limit=32))[:16], "...")
    threads = [threading.Thread(target=serve, args=(model, "Tell me a story", 64)) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


if __name__ == "__main__":
    main()
