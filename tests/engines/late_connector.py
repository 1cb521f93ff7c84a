"""
A KV connector for tests: prompts of many tokens wait for keys and values that take a known time to come.

What it brings is what the memory held before: the text is nonsense, the waiting is real.
"""

from __future__ import annotations

import time
from typing import Any

from vllm.distributed.kv_transfer.kv_connector.v1.base import KVConnectorBase_V1, KVConnectorMetadata, KVConnectorRole

SECONDS = 0.4
FROM_TOKENS = 40
waited: dict[str, float] = {}
"""Seconds that each transfer really took; of use where the engine core is in the test's own process."""


class Loads(KVConnectorMetadata):
    """The transfers that begin in this step."""

    def __init__(self, requests: list[str]) -> None:
        self.requests = requests


class LateConnector(KVConnectorBase_V1):
    """Both sides, that of the scheduler and that of the worker."""

    def __init__(self, vllm_config: Any, role: KVConnectorRole, *args: Any, **kwargs: Any) -> None:
        super().__init__(vllm_config, role, *args, **kwargs)
        self._block = vllm_config.cache_config.block_size
        self._begin: list[str] = []
        self._loading: dict[str, float] = {}

    def get_num_new_matched_tokens(self, request: Any, num_computed_tokens: int) -> tuple[int, bool]:
        tokens = request.num_prompt_tokens // self._block * self._block - num_computed_tokens
        late = request.num_prompt_tokens >= FROM_TOKENS and tokens > 0
        return (tokens, True) if late else (0, False)

    def update_state_after_alloc(self, request: Any, blocks: Any, num_external_tokens: int) -> None:
        if num_external_tokens > 0:
            self._begin.append(request.request_id)

    def build_connector_meta(self, scheduler_output: Any) -> Loads:
        begun, self._begin = self._begin, []
        return Loads(begun)

    def start_load_kv(self, forward_context: Any, **kwargs: Any) -> None:
        for request_id in self._get_connector_metadata().requests:
            self._loading[request_id] = time.monotonic()

    def get_finished(self, finished_req_ids: set[str]) -> tuple[set[str] | None, set[str] | None]:
        now = time.monotonic()
        done = {key for key, begun in self._loading.items() if now - begun >= SECONDS}
        for key in done:
            waited[key] = now - self._loading.pop(key)
        return None, done or None

    def wait_for_layer_load(self, layer_name: str) -> None:
        """All is there before the request is scheduled."""

    def save_kv_layer(self, *args: Any, **kwargs: Any) -> None:
        """Nothing is kept."""

    def wait_for_save(self) -> None:
        """Nothing is kept."""
