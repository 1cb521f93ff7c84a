from __future__ import annotations

import subprocess
import sys

from otel_llm.demo.server import _group_alive

NAMELESS = r"open('/proc/self/comm', 'wb').write(b'\xff) R 1 1'); print(flush=True); input()"


def test_a_process_may_have_any_name() -> None:
    """Seen to fail with names read as UTF-8: the demo ended with a traceback while such a process ran."""
    command = [sys.executable, "-c", NAMELESS]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True) as process:
        assert process.stdout is not None
        process.stdout.readline()
        assert _group_alive(process.pid)
        process.communicate(b"\n")
    assert not _group_alive(process.pid)
