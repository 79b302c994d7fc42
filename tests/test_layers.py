"""Imports point down the layers, and what searching needs never imports torch."""

import ast
import subprocess
import sys
from pathlib import Path

PACKAGE = Path(__file__).parents[1] / "src" / "kedge"

# From the top down. Files of one row may import each other.
LAYERS = [
    {"__main__", "__init__"},
    {"cli"},
    {"demo"},
    {"comparison"},
    {"grid", "cell"},
    {"training"},
    {"training_loop", "unfinished_run"},
    {"batches", "export", "defaults", "quantization"},
    {"page"},
    {"gallery", "evaluation"},
    {"measurement"},
    {"reindexing", "disk_search", "memory_search", "new_class"},
    {"intake", "queries", "gallery_folder"},
    {"pictures_table"},
    {"sources", "vectors", "checksums", "duplicates", "export_gallery"},
    {"search", "encoder", "datasets", "augmentation"},
    {"torch_runtime"},
    {"losses", "network", "torch_device"},
    {"bounds"},
    {"filing", "figures"},
    {"model"},
    {"calibration"},
    {"ranking"},
    {
        "anchors",
        "hits",
        "keys",
        "picture",
        "metrics",
        "config",
        "runtime",
        "archives",
        "stores",
        "csv_table",
        "row_filter",
        "jobs",
    },
    {"atomic_write", "cores", "distances", "errors"},
]
WITH_TORCH = {
    "demo",
    "comparison",
    "grid",
    "cell",
    "training",
    "training_loop",
    "defaults",
    "export",
    "losses",
    "network",
    "augmentation",
    "torch_runtime",
    "torch_device",
    "batches",
}


def noun(path):
    """The file's name, or its folder's for the files of a folder."""
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imported(path, *, top_only):
    tree = ast.parse(path.read_text("utf-8"))
    nodes = tree.body if top_only else ast.walk(tree)
    for node in nodes:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module


def layer_of(name):
    return next(row for row, names in enumerate(LAYERS) if name in names)


def test_every_file_has_a_layer():
    named = {name for names in LAYERS for name in names}
    assert {noun(path) for path in PACKAGE.rglob("*.py")} == named


def test_imports_point_down():
    wrong = []
    for path in PACKAGE.rglob("*.py"):
        if noun(path) in ("__init__", "__main__"):
            continue
        for module in imported(path, top_only=False):
            parts = module.split(".")
            if parts[0] == "kedge" and len(parts) > 1 and layer_of(parts[1]) < layer_of(noun(path)):
                wrong.append(f"{path.name} imports {module}")
    assert wrong == []


def test_torch_is_imported_by_training_alone():
    heavy = {"torch", "torchvision", "timm", "lightning"}
    for path in PACKAGE.rglob("*.py"):
        if noun(path) not in WITH_TORCH:
            assert not {module.split(".")[0] for module in imported(path, top_only=True)} & heavy, path


def test_searching_and_evaluating_load_no_torch():
    code = (
        "import sys, kedge\n"
        "kedge.Gallery, kedge.TwoStageIndex, kedge.Encoder, kedge.evaluate, kedge.Model\n"
        "import kedge.cli, kedge.page\n"
        "sys.exit('torch' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_importing_kedge_loads_nothing_heavy():
    code = "import sys, kedge\nsys.exit(bool({'numpy', 'torch', 'lance', 'pyarrow', 'matplotlib'} & set(sys.modules)))"
    subprocess.run([sys.executable, "-c", code], check=True)
