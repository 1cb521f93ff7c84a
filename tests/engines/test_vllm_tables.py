"""The pages that put vLLM's own metrics beside ours name metrics that exist, in the vLLM that is installed."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from otel_llm import conventions

pytestmark = pytest.mark.vllm


def test_the_tables_name_what_vllm_and_otel_llm_emit() -> None:
    import vllm

    folders = (Path(vllm.__file__).parent / name for name in ("v1", "entrypoints"))
    sources = "".join(file.read_text() for folder in folders for file in folder.rglob("*.py"))
    declared = set(re.findall(r'"(vllm:\w+)"', sources))
    pages = [(Path(__file__).parents[2] / page).read_text() for page in ("integrations/vllm/README.md", "docs/vllm.md")]
    named = {name for text in pages for name in re.findall(r"vllm:\w+", text)}
    assert len(named) > 20
    assert {name for name in named if name not in declared and name.removesuffix("_total") not in declared} == set()
    ours = set(re.findall(r"`((?:otel_llm|gen_ai)\.[\w.]+\w)`", pages[0]))
    assert ours <= {*conventions.INSTRUMENTS, *conventions.ATTRIBUTES}
