"""
Found by Python at start-up when ``otel-llm run`` put this folder on its path.

Instruments this process, then hands over to the sitecustomize that it hides.
"""

import importlib.machinery
import importlib.util
import sys
from pathlib import Path

_HERE = Path(__file__).parent


def _hand_over() -> None:
    rest = [entry for entry in sys.path if Path(entry or ".").resolve() != _HERE.resolve()]
    spec = importlib.machinery.PathFinder.find_spec("sitecustomize", rest)
    if spec is not None and spec.loader is not None:
        module = importlib.util.module_from_spec(spec)
        sys.modules["sitecustomize"] = module
        spec.loader.exec_module(module)


def _start() -> None:
    try:
        from otel_llm import config, zero_code
    except ImportError:
        return  # another environment's interpreter, which has no otel_llm
    if config.flag(config.ENABLED):
        zero_code.start()


_start()
_hand_over()
