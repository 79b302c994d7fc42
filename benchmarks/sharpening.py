"""How strongly should embeddings be turned to the anchors near them: both sides (sharpening), or the query alone?

    python benchmarks/sharpening.py MODEL [MODEL ...]

Models are trained with `--sharpening 1`, so that what they store can be sharpened here; anchors of losses that learn
none are class means. Queries: validation pictures, in those trained on; with --test the test pictures, in all training
pictures. Writes a table in Markdown: mAP and R@1 by power. Query expansion (`--expand`) is the query alone, power 9.
"""

import sys
from datetime import date
from importlib.metadata import version

import torch

import kedge
from kedge.evaluation import encode_split, load_for
from kedge.measurement import exhaustive_scores
from kedge.network import sharpened

POWERS = (1.0, 1.25, 1.5, 2.0, 3.0, 6.0, 9.0, 12.0)


def turned(vectors, anchors, power):
    """Return vectors turned to anchors; power 1 leaves them as they are."""
    return vectors if power == 1.0 else sharpened(torch.from_numpy(vectors), torch.from_numpy(anchors), power).numpy()


def main():
    print(f"{date.today()}, kedge {version('kedge')}; mAP / R@1.\n")
    print(f"| loss | data, classes | turned | {' | '.join(f'power {power:g}' for power in POWERS)} |")
    print("|---|---|---|" + "---|" * len(POWERS))
    on_test = "--test" in sys.argv
    for folder in (argument for argument in sys.argv[1:] if argument != "--test"):
        model = kedge.Model.load(folder)
        if model.card.trained.get("sharpening", 1.0) != 1.0:
            sys.exit(f"{folder} stores sharpened embeddings: train it with sharpening = 1.0")
        dataset = load_for(model, model.card.trained["data"])
        encoder, anchors = kedge.Encoder(model), model.search_anchors.vectors
        queries = encode_split(encoder, dataset.test if on_test else dataset.validation)
        gallery = encode_split(encoder, dataset.gallery if on_test else dataset.train)
        for name, both in (("both sides", True), ("the query alone", False)):
            cells = []
            for power in POWERS:
                searched = turned(gallery.vectors, anchors, power) if both else gallery.vectors
                asked = turned(queries.vectors, anchors, power)
                found = exhaustive_scores(asked, queries.labels, searched, gallery.labels, "cosine")
                cells.append(" / ".join(f"{100 * figure:.1f}" for figure in found))
            loss = model.card.trained["loss"]
            print(f"| {loss} | {dataset.name}, {len(dataset.classes)} | {name} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
