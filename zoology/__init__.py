"""Zoology: how much can a sequence mixer recall for each byte of state that it keeps?

The public names below are loaded on first use, so that `import zoology` costs nothing and the parts that need no
torch (tasks, records, analysis) run where torch is not installed.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_HOMES = {
    "InputError": "zoology.registry",
    "Batch": "zoology.tasks.base",
    "IGNORE": "zoology.tasks.base",
    "Preset": "zoology.tasks.base",
    "Task": "zoology.tasks.base",
    "register_task": "zoology.tasks.base",
    "Architecture": "zoology.architectures.base",
    "ContextMixer": "zoology.architectures.base",
    "Layer": "zoology.architectures.base",
    "Mixer": "zoology.architectures.base",
    "MixerConfig": "zoology.architectures.config",
    "dial": "zoology.architectures.config",
    "register_architecture": "zoology.architectures.base",
    "register_mixer": "zoology.architectures.base",
}

__all__ = ["__version__", *sorted(_HOMES)]

if TYPE_CHECKING:
    from zoology.architectures.base import (
        Architecture,
        ContextMixer,
        Layer,
        Mixer,
        register_architecture,
        register_mixer,
    )
    from zoology.architectures.config import MixerConfig, dial
    from zoology.registry import InputError
    from zoology.tasks.base import IGNORE, Batch, Preset, Task, register_task


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'zoology' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return __all__
