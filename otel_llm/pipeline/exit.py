"""
The end of a process: what is queued is sent, within a bounded time.

``atexit`` does not run when a process dies of SIGTERM, nor in a child of
``multiprocessing``. A signal handler of the service is never replaced.
"""

from __future__ import annotations

import atexit
import os
import signal
import threading
from collections.abc import Callable
from types import FrameType
from typing import Any, Final

from otel_llm import faults

_finalizer: tuple[int, Any] | None = None
"""Process, and what multiprocessing calls at its end."""
_on_exit: Final[list[Callable[[], None]]] = []
_closing = False
_ended_by: int | None = None
"""The signal that this process dies of when it has closed."""


def arm(close: Callable[[], None]) -> None:
    """Call ``close`` at the end of this process and of its forked children; once per process."""
    if not _on_exit:
        atexit.register(_close)
        _arm_sigterm()
    _on_exit[:] = [close]
    arm_child()


def arm_child() -> None:
    """A child of multiprocessing leaves by ``os._exit`` and runs only these finalisers."""
    global _finalizer
    # multiprocessing forgets those that were made while it imported the main
    # module into a child, so this is looked at again when the pipeline is built.
    if _finalizer is None or _finalizer[0] != os.getpid() or not _finalizer[1].still_active():
        import multiprocessing.util

        _finalizer = os.getpid(), multiprocessing.util.Finalize(None, _close, exitpriority=100)


def _close() -> None:
    global _closing
    if _closing:
        return  # a signal, the second one perhaps: whom it interrupts is at it
    _closing = True
    try:
        for close in _on_exit:
            close()
    except Exception as error:
        faults.swallow("pipeline.exit", error)
    finally:
        _closing = False
    if _ended_by is not None:
        signal.signal(_ended_by, signal.SIG_DFL)
        signal.raise_signal(_ended_by)


def _arm_sigterm() -> None:
    # uvicorn restores the handler that it found and raises the signal again,
    # so this one runs after its last request.
    if threading.current_thread() is not threading.main_thread():
        return
    if signal.getsignal(signal.SIGTERM) == signal.SIG_DFL:
        signal.signal(signal.SIGTERM, _on_sigterm)


def _on_sigterm(number: int, _frame: FrameType | None) -> None:
    global _ended_by
    _ended_by = number
    _close()


def _in_child() -> None:
    global _closing, _ended_by
    _closing, _ended_by = False, None


os.register_at_fork(after_in_child=_in_child)


def flush_after(flush: Callable[[], None]) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """
    For ``uvicorn.server:Server.shutdown``: flush when the last request is done.

    An application that is imported by a running server finds uvicorn's signal
    handler in place, and the process dies of the re-raised signal afterwards.
    """

    def replacement(original: Callable[..., Any]) -> Callable[..., Any]:
        async def shutdown(self: Any, *args: Any, **kwargs: Any) -> Any:
            try:
                return await original(self, *args, **kwargs)
            finally:
                try:
                    flush()
                except Exception as error:
                    faults.swallow("pipeline.flush", error)

        return shutdown

    return replacement
