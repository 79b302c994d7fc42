"""Torch device: where networks are trained, in what numbers, and what memory that took."""

import sys
from collections.abc import Mapping
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import nn

from kedge.config import TrainingConfig
from kedge.errors import ConfigError

__all__ = ["peak_memory", "training_device", "training_precision", "whole_float32"]


def training_device() -> torch.device:
    """Return where networks are trained: on CUDA or Apple's MPS where there is one."""
    if torch.cuda.is_available():
        return torch.device("cuda")
    return torch.device("mps") if torch.backends.mps.is_available() else torch.device("cpu")


def training_precision(settings: TrainingConfig, network: nn.Module) -> str:
    """Return what a network is trained in: `auto` is bfloat16 where that takes about half the time, else float32.

    Raises ConfigError for float16 without a GPU.
    """
    device = training_device().type
    if settings.precision == "float16" and device == "cpu":
        raise ConfigError("a CPU does not train in float16: take bfloat16 or float32")
    if settings.precision != "auto":
        return settings.precision
    able = False
    if device == "cuda":
        able = torch.cuda.is_bf16_supported(including_emulation=False)
    elif device == "cpu" and not any(map(_is_depthwise, network.modules())):
        # Older versions of torch cannot be asked what a CPU has.
        has: Mapping[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()
        able = bool(has.get("avx512_bf16") or has.get("amx_bf16"))
    return "bfloat16" if able else "float32"


def _is_depthwise(module: nn.Module) -> bool:
    """Tell whether it is a convolution of each channel by itself: on CPUs these are slow in bfloat16."""
    return isinstance(module, nn.Conv2d) and module.groups == module.in_channels > 1


def whole_float32() -> AbstractContextManager[None]:
    """Keep convolutions on a GPU from TF32, which they take unless they are told not to: its error is a thousandth."""
    kept: AbstractContextManager[None] = torch.backends.cudnn.flags(enabled=True, benchmark=False, allow_tf32=False)
    return kept


def peak_memory() -> int:
    """Return the most MB that this process held on its GPU, or at all where there is none (0 on Windows)."""
    if torch.cuda.is_available():
        return round(torch.cuda.max_memory_allocated() / 1e6)
    if sys.platform == "win32":
        return 0
    import resource

    unit = 1 if sys.platform == "darwin" else 1024
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6)
