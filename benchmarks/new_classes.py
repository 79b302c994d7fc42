"""How well are classes found that were added from a few examples, without training?

    python benchmarks/new_classes.py cifar20 --unseen 5 --examples 1 5 20 --seeds 0 1 2 --runs runs/new

A model is trained on all but the last classes; each of these is then added with `kedge.add_class` from examples drawn
from its training pictures. Queries: the test pictures of the added classes; gallery: the training pictures of all
classes. Two-stage search looks under one anchor; `own anchor` is the share of queries whose nearest anchor is that of
their class. Writes a table in Markdown.
"""

import argparse
import shutil
import tempfile
import tomllib
from datetime import date
from importlib.metadata import version
from pathlib import Path

import numpy as np

import kedge
from kedge.evaluation import encode_split


def parse():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data")
    parser.add_argument("--unseen", type=int, default=5)
    parser.add_argument("--examples", nargs="+", type=int, default=[1, 5, 20])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--loss", default="cam-sphere")
    parser.add_argument("--setting", action="append", default=[], help="NAME=VALUE, as TOML")
    parser.add_argument("--runs", type=Path, default=Path("runs/new"))
    return parser.parse_args()


def trained(options, classes, seed):
    folder = options.runs / f"{options.loss}-{seed}"
    if folder.exists():
        return kedge.Model.load(folder)
    options.runs.mkdir(parents=True, exist_ok=True)
    settings = {"loss": options.loss, "classes": classes, "seed": seed, **tomllib.loads("\n".join(options.setting))}
    return kedge.train(options.data, folder, evaluate=False, quiet=True, resume=True, **settings)


def with_classes(model, dataset, examples, seed):
    """Return a copy of the model with the unseen classes added, and what was said of each."""
    folder = Path(tempfile.mkdtemp()) / "model"
    shutil.copytree(model.folder, folder)
    random, told = np.random.default_rng(seed), []
    for number in range(len(model.card.classes), len(dataset.classes)):
        rows = random.permutation(np.flatnonzero(dataset.gallery.labels == number))[:examples]
        grown, added = kedge.add_class(folder, dataset.classes[number], [dataset.gallery.paths[row] for row in rows])
        told.append(added)
    return grown, told


def main():
    options = parse()
    found = {}
    for seed in options.seeds:
        dataset = kedge.load_dataset(options.data, seed=seed)
        model = trained(options, len(dataset.classes) - options.unseen, seed)
        encoder = kedge.Encoder(model)
        asked = dataset.test[np.flatnonzero(dataset.test.labels >= len(model.card.classes))]
        queries = encode_split(encoder, asked)
        gallery = encode_split(encoder, dataset.gallery)
        for examples in (0, *options.examples):
            grown, told = with_classes(model, dataset, examples, seed) if examples else (model, [])
            report = kedge.evaluate_vectors(
                queries.vectors, queries.labels, gallery.vectors, gallery.labels, grown.anchors,
                classes=dataset.classes, distance=grown.card.distance, probes=(1,),
            )  # fmt: skip
            whole = report.figures("exhaustive", grown.card.distance)
            probed = report.figures("two-stage", grown.card.distance, "nearest", 1)
            nearest = grown.search_anchors.nearest(encoder.encode(asked.decode(encoder.image_size).pixels))
            own = np.mean(
                [
                    grown.card.classes[row] == dataset.classes[label]
                    for row, label in zip(nearest, queries.labels, strict=True)
                ]
            )
            found.setdefault(examples, []).append(
                [100 * value for value in (whole.map, probed.map, probed.precision_at["20"], probed.scanned_share, own)]
                + [
                    np.mean([added.distance for added in told]) if told else np.nan,
                    sum(added.crowded for added in told),
                ]
            )
    print(
        f"{dataset.name}, {options.loss}: {len(dataset.classes) - options.unseen} classes trained on, {options.unseen} "
        f"added; {len(queries)} queries, gallery of {len(gallery)}; seeds {options.seeds}; {date.today()}, "
        f"kedge {version('kedge')}\n"
    )
    print("| examples a class | mAP, exhaustive | mAP, one probe | P@20, one probe | looked at | own anchor | "
          "distance to the nearest other anchor | told as crowded |")  # fmt: skip
    print("|---|---|---|---|---|---|---|---|")
    for examples, rows in found.items():
        means, spreads = np.mean(rows, axis=0), np.std(rows, axis=0)
        cells = [f"{mean:.1f} ± {spread:.1f}" for mean, spread in zip(means[:5], spreads[:5], strict=True)]
        told = [f"{means[5]:.2f}", f"{means[6]:.1f} of {options.unseen}"] if examples else ["", ""]
        print(f"| {examples or 'not added'} | " + " | ".join([*cells, *told]) + " |")


if __name__ == "__main__":
    main()
