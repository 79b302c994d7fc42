"""The command line: a command parses, calls one function and prints.

Results go to stdout, progress to stderr. A user's mistake is one line that says the remedy: exit code 2 for input that
cannot be used, 1 for work that failed.
"""

import io
import json
import os
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

import kedge
from kedge.cli import galleries, models
from kedge.cli.options import Json, listed, scored, shown
from kedge.errors import InputError, KedgeError, reason_of

__all__ = ["app", "main"]

app = typer.Typer(
    name="kedge",
    help="Image retrieval with learned class anchors: train, evaluate, index and search.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

app.add_typer(models.commands)
app.add_typer(galleries.commands)

# What only `kedge[train]` brings.
TRAINING_PARTS = (
    "lightning",
    "onnx",
    "onnxscript",
    "pytorch_metric_learning",
    "timm",
    "torch",
    "torchvision",
)


def main() -> None:
    """Run the command line; turn Kedge's errors into one line and an exit code."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        # Names of pictures may hold signs that the output's encoding has not.
        sys.stdout.reconfigure(errors="backslashreplace")
    # Lance's log is nothing that a user can act on.
    os.environ.setdefault("LANCE_LOG", "error")
    output = sys.stdout
    try:
        app()
    except KedgeError as error:
        print(f"kedge: {shown(error)}", file=sys.stderr)
        sys.exit(error.exit_code)
    except ModuleNotFoundError as error:
        if error.name not in TRAINING_PARTS:
            raise
        print(f"kedge: this needs {error.name}: pip install 'kedge[train]'", file=sys.stderr)
        sys.exit(2)
    except SystemExit as end:
        if sys.stdout is not output:
            # Typer has seen that the reader of our output went away (`| head`): nothing is wrong.
            sys.exit(0)
        # Typer's for Ctrl-C, of which it says nothing.
        if end.code == 130:
            print(f"kedge: stopped{_goes_on(sys.argv[1:2])}", file=sys.stderr)
        raise
    except OSError as error:
        told = f"{shown(reason_of(error))}: check that it can be read and written, and has room"
        print(f"kedge: {told}{_goes_on(sys.argv[1:2])}", file=sys.stderr)
        sys.exit(1)


def _goes_on(command: list[str]) -> str:
    """Return what becomes of a command that was stopped."""
    if command == ["train"]:
        return "; --resume goes on from the last whole epoch, if there was one"
    if command in (["compare"], ["add"], ["reindex"]):
        return "; the same command goes on from what was finished, if anything was"
    return ""


@app.callback(invoke_without_command=True)
def _options(
    show_version: Annotated[bool, typer.Option("--version", is_eager=True, help="Say which version this is.")] = False,
) -> None:
    if show_version:
        print(f"kedge {kedge.__version__}")
        raise typer.Exit


@app.command()
def demo(
    out: Annotated[Path, typer.Option(help="The folder to write.")] = Path("demo"),
) -> None:
    """Run the main job on handwritten digits: train, evaluate, file, search; prints where to look."""
    from kedge.demo import run_demo

    run_demo(out)


@app.command()
def info(
    target: Annotated[Path, typer.Argument(help="A model or a gallery folder.")],
    json_: Json = False,
) -> None:
    """Say what a model or a gallery holds."""
    said = _info(target)
    if json_:
        print(json.dumps(said))
        return
    scores = {f"{split} scores": scored(figures) for split, figures in said.pop("scores", {}).items()}
    for name, value in (said | scores).items():
        print(f"{name:<17} {listed(value)}")


def _info(target: Path) -> dict[str, Any]:
    from kedge.gallery_folder import CARD as GALLERY_CARD
    from kedge.gallery_folder import MODEL, TABLE
    from kedge.model import CARD

    if not target.is_dir():
        raise InputError(f"no model or gallery at {target}: `kedge train` makes the one, `kedge create` the other")
    if (target / CARD).is_file():
        return kedge.Model.load(target).info()
    if not any((target / part).exists() for part in (GALLERY_CARD, MODEL, TABLE)):
        raise InputError(
            f"{target} is no model and no gallery: name a folder that `kedge train` or `kedge create` made"
        )
    with kedge.Gallery.open(target) as gallery:
        return gallery.info()
