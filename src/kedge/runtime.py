"""Runtime: what runs an encoder on this machine: ONNX Runtime, OpenVINO where it is faster, torch on a GPU."""

import ctypes
import sys
from collections.abc import Callable
from functools import cache
from importlib import import_module
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from threading import Lock
from types import ModuleType
from typing import Any, Literal, cast, get_args

import numpy as np
import numpy.typing as npt

from kedge.cores import own_cores
from kedge.errors import InputError, MissingPartError, ModelError

__all__ = [
    "TOLERANCE",
    "Graph",
    "Precision",
    "Runtime",
    "best_runtime",
    "describe_runtime",
    "has_gpu",
    "load_graph",
    "relative_error",
]

Runtime = Literal["auto", "onnxruntime", "openvino", "torch"]
Precision = Literal["float32", "bfloat16", "int8"]
Graph = Callable[[npt.NDArray[np.uint8]], npt.NDArray[np.float32]]
# As far as a graph may be from its network, by `relative_error`: float32 sums in another order differ by less.
TOLERANCE = 1e-4
_ONE_CORE = Lock()


def load_graph(path: Path, *, runtime: Runtime, precision: Precision, threads: int | None) -> Graph:
    """Return a function from pictures (n, s, s, 3) uint8 to embeddings (n, d) float32.

    Raises InputError for a runtime that runs no graphs, MissingPartError for one that is not installed, ModelError for
    a graph that cannot be run, or not in this precision on this machine.
    """
    if runtime not in ("onnxruntime", "openvino"):
        raise InputError(f"no runtime is called '{runtime}': there are {', '.join(get_args(Runtime))}")
    if runtime == "onnxruntime" and precision == "bfloat16":
        raise ModelError("ONNX Runtime has no bfloat16 on CPUs: leave --runtime out, or take openvino")
    if precision == "bfloat16" and not has_bfloat16():
        raise ModelError(
            "the model works in bfloat16, which needs a GPU, or OpenVINO (pip install 'kedge[openvino]') on a CPU that "
            "has it: use it on such a machine, or create the gallery with --precision float32"
        )
    load = _load_openvino if runtime == "openvino" else _load_onnxruntime
    try:
        return load(path, precision, threads or own_cores())
    except ImportError as error:
        raise MissingPartError(f"the runtime needs {runtime}: pip install 'kedge[openvino]'") from error
    except Exception as error:  # the runtimes' own exceptions share no public base class
        # OpenVINO begins with places in its sources.
        reason = next(filter(None, reversed(str(error).splitlines())), type(error).__name__)
        raise ModelError(f"{path} cannot be run ({reason}): train or export the model again") from error


def relative_error(found: npt.NDArray[np.float32], expected: npt.NDArray[np.float32]) -> float:
    """Return the norm of the difference of two arrays of one shape, relative to that of the second."""
    return float(np.linalg.norm(found - expected)) / max(float(np.linalg.norm(expected)), 1e-12)


def best_runtime(precision: Precision, *, has_weights: bool) -> Runtime:
    """Return the runtime that is fastest here, by what the machine has: equal machines choose alike.

    On a GPU torch runs models that have their weights, unless ONNX Runtime can use the GPU. OpenVINO runs transformers
    up to three times as fast as ONNX Runtime on CPUs with AVX-512 (those that have bfloat16, too); on others they are
    equal, and ONNX Runtime is always there.
    """
    if "CUDAExecutionProvider" in _providers() and precision != "bfloat16":
        return "onnxruntime"
    if has_weights and precision != "int8" and has_gpu():
        return "torch"
    return "openvino" if precision == "bfloat16" or has_bfloat16() else "onnxruntime"


def describe_runtime(precision: Precision, *, has_weights: bool) -> str:
    """Return what runs a model of this precision here, such as `onnxruntime 1.20.0 on the CPU`."""
    name = best_runtime(precision, has_weights=has_weights)
    if name == "openvino" and not has_bfloat16():
        return "none: bfloat16 needs a GPU, or openvino on a CPU that has it"
    on_gpu = name == "torch" or (name == "onnxruntime" and "CUDAExecutionProvider" in _providers())
    device = "CUDA" if on_gpu else "the CPU"
    # Its distribution has another name where it is built for GPUs.
    found = import_module(name).__version__ if name == "onnxruntime" else version(name)
    return f"{name} {found} on {device}"


@cache
def has_gpu() -> bool:
    """Tell whether torch is installed and can use an NVIDIA GPU; it is loaded only where there is a driver."""
    try:
        ctypes.CDLL("nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1")
        return bool(import_module("torch").cuda.is_available())
    except (OSError, ImportError):
        return False


def has_bfloat16() -> bool:
    """Tell whether OpenVINO is installed and this CPU works with bfloat16."""
    if find_spec("openvino") is None:
        return False
    try:
        return "BF16" in _openvino_core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    except (ImportError, OSError, RuntimeError):  # of a broken installation; models of float32 need none
        return False


def _providers() -> list[str]:
    import onnxruntime

    return cast("list[str]", onnxruntime.get_available_providers())


def _load_onnxruntime(path: Path, _: Precision, threads: int) -> Graph:
    # Loading the runtime takes a while, and opening a gallery of vectors needs none.
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    wanted = [name for name in ("CUDAExecutionProvider", "CPUExecutionProvider") if name in _providers()]
    session = onnxruntime.InferenceSession(path, options, providers=wanted)

    def run(squares: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
        (embeddings,) = session.run(None, {"pictures": squares})
        return cast("npt.NDArray[np.float32]", embeddings)

    return run


def _openvino() -> ModuleType:
    """Import OpenVINO without its telemetry, which sends a message through a forked process at every import."""
    telemetry = "openvino_telemetry"
    there = telemetry in sys.modules
    # None makes an import fail, which OpenVINO takes for a package that is not installed.
    sys.modules.setdefault(telemetry, None)  # type: ignore[arg-type]  # typed as modules alone
    try:
        return import_module("openvino")
    finally:
        if not there:
            del sys.modules[telemetry]


def _openvino_core() -> Any:
    """Return the process's one OpenVINO core, which is never let go.

    A core gives the thread that makes it a stack for signal handlers, and takes that memory back wherever it is let go.
    Let go in another thread, it leaves the first one without: the next signal, such as a Ctrl-C, crashes the process.
    """
    with _ONE_CORE:
        return _core_of(_openvino())


@cache
def _core_of(openvino: ModuleType) -> Any:
    return openvino.Core()


def _load_openvino(path: Path, precision: Precision, threads: int) -> Graph:
    hint = "bf16" if precision == "bfloat16" else "f32"
    settings: dict[str, Any] = {"INFERENCE_NUM_THREADS": threads, "INFERENCE_PRECISION_HINT": hint}
    request = _openvino_core().compile_model(str(path), "CPU", settings).create_infer_request()

    def run(squares: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
        # Copied: the next pictures' embeddings come into the same place.
        return np.array(request.infer({0: squares})[0], dtype=np.float32)

    return run
