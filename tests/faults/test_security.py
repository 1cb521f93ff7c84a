"""What SECURITY.md claims, and that it names its proofs."""

from __future__ import annotations

import re
import runpy
from pathlib import Path

import pytest

from otel_llm.report.receiver import Receiver
from tests.faults.programs import finish, start
from tests.faults.test_hostile import SERVER, end, exchange, serve

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.skipif(not (ROOT / "tools").is_dir(), reason="the wheel holds no pages")


def test_the_page_lists_all_that_is_sent() -> None:
    generator = runpy.run_path(str(ROOT / "tools/telemetry_page.py"))
    assert (ROOT / "SECURITY.md").read_text() == generator["security"](), "run python tools/telemetry_page.py"


def test_the_page_names_tests_that_exist() -> None:
    named = re.findall(r"`(?:(tests/\S+?\.py))?(?:::(\w+))?`", (ROOT / "SECURITY.md").read_text())
    checked, file = 0, ""
    for path, name in named:
        file = path or file
        if path or name:
            assert f"def {name}(" in (ROOT / file).read_text() if name else (ROOT / file).exists(), (file, name)
            checked += 1
    assert checked >= 12


def test_answers_are_those_of_a_server_without_us(receiver: Receiver) -> None:
    """Byte for byte, although the client asks for times. Seen to fail with OTEL_LLM_TIMING=1: a header more."""
    answers = []
    for instrumented in (False, True):
        program = SERVER if instrumented else SERVER + "otel_llm.instrument = lambda: None\n"
        process, port = serve(program, receiver.url)
        headers = b"x-otel-llm-timing: 1\r\ntraceparent: 00-%032x-%016x-01\r\n" % (7, 7)
        answers.append(re.sub(rb"date: .*?\r\n", b"", exchange(port, b'{"prompt": "x"}', headers)))
        assert end(process) == ""
    assert answers[0] == answers[1]


def test_nothing_listens(receiver: Receiver) -> None:
    """Seen to fail with a listener opened beside instrument()."""
    program = """
    import pathlib, re
    otel_llm.instrument()
    one()
    held = {os.readlink(file) for file in pathlib.Path("/proc/self/fd").iterdir() if file.is_symlink()}
    for table in ("tcp", "tcp6", "udp", "udp6"):
        for line in pathlib.Path(f"/proc/self/net/{table}").read_text().splitlines()[1:]:
            field = line.split()
            if f"socket:[{field[9]}]" in held and (field[3] == "0A" or table.startswith("udp")): print(line)
    """
    assert finish(start(program, receiver.url)) == ("", "")
