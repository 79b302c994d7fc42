"""Kedge: image retrieval with learned class anchors. Train, evaluate, index and search."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from kedge.anchors import Anchors
    from kedge.comparison import Comparison, compare
    from kedge.config import TrainingConfig
    from kedge.datasets import Dataset, load_dataset
    from kedge.encoder import Encoder
    from kedge.errors import InputError, KedgeError, WorkError
    from kedge.evaluation import evaluate
    from kedge.figures import Report
    from kedge.gallery import AddReport, Gallery
    from kedge.grid import Grid
    from kedge.hits import Hit, SearchResult
    from kedge.losses import ClassAnchorMargin
    from kedge.measurement import evaluate_vectors
    from kedge.model import Model
    from kedge.new_class import NewClass, add_class
    from kedge.picture import Picture, read_picture
    from kedge.quantization import Quantized, quantize
    from kedge.search import Neighbours, TwoStageIndex
    from kedge.training import train

__version__ = "0.1.0"

# Names are fetched from their files when they are first used: `import kedge` stays instant, and searching a gallery
# never imports torch.
_HOMES = {
    "AddReport": "gallery",
    "Anchors": "anchors",
    "ClassAnchorMargin": "losses",
    "Comparison": "comparison",
    "Dataset": "datasets",
    "Encoder": "encoder",
    "Gallery": "gallery",
    "Grid": "grid",
    "Hit": "hits",
    "InputError": "errors",
    "KedgeError": "errors",
    "Model": "model",
    "Neighbours": "search",
    "NewClass": "new_class",
    "Picture": "picture",
    "Quantized": "quantization",
    "Report": "figures",
    "SearchResult": "hits",
    "TrainingConfig": "config",
    "TwoStageIndex": "search",
    "WorkError": "errors",
    "add_class": "new_class",
    "compare": "comparison",
    "evaluate": "evaluation",
    "evaluate_vectors": "measurement",
    "load_dataset": "datasets",
    "quantize": "quantization",
    "read_picture": "picture",
    "train": "training",
}

# Needed by these alone: without `kedge[train]` their import names the command that installs it.
_NEED_TORCH = frozenset({"ClassAnchorMargin", "Comparison", "Grid", "compare", "train"})

__all__ = [
    "AddReport",
    "Anchors",
    "ClassAnchorMargin",
    "Comparison",
    "Dataset",
    "Encoder",
    "Gallery",
    "Grid",
    "Hit",
    "InputError",
    "KedgeError",
    "Model",
    "Neighbours",
    "NewClass",
    "Picture",
    "Quantized",
    "Report",
    "SearchResult",
    "TrainingConfig",
    "TwoStageIndex",
    "WorkError",
    "add_class",
    "compare",
    "evaluate",
    "evaluate_vectors",
    "load_dataset",
    "quantize",
    "read_picture",
    "train",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'kedge' has no attribute '{name}'")
    try:
        return getattr(import_module(f"kedge.{_HOMES[name]}"), name)
    except ModuleNotFoundError as error:
        if name not in _NEED_TORCH or str(error.name).startswith("kedge"):
            raise
        from kedge.errors import MissingPartError

        raise MissingPartError(f"training needs {error.name}: pip install 'kedge[train]'") from error


def __dir__() -> list[str]:
    return sorted([*__all__, "__version__"])
