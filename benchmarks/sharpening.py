"""How strongly should embeddings be turned to the anchors near them: both sides (sharpening), or the query alone?

    python benchmarks/sharpening.py MODEL [MODEL ...]

Models are `cam-sphere`, trained with `--config` of `sharpening = 1.0`, so that what they store can be sharpened here.
Queries: the validation pictures of each model's training data; gallery: the pictures it was trained on. Writes a table
in Markdown: mAP and R@1 by power, query expansion among them as the power of 3 on the query alone.
"""

import sys
from datetime import date
from importlib.metadata import version

import numpy as np

import kedge
from kedge.anchors import unit_length
from kedge.evaluation import encode_split, exhaustive_scores, load_for

POWERS = (1.0, 1.25, 1.5, 2.0, 3.0, 6.0)


def turned(vectors, anchors, power):
    if power == 1.0:
        return vectors
    cosines = vectors @ anchors.T
    return unit_length(np.sign(cosines) * abs(cosines) ** power @ anchors)


def main():
    print(f"{date.today()}, kedge {version('kedge')}; mAP / R@1 of validation pictures.\n")
    print(f"| data, classes | turned | {' | '.join(f'power {power:g}' for power in POWERS)} |")
    print("|---|---|" + "---|" * len(POWERS))
    for folder in sys.argv[1:]:
        model = kedge.Model.load(folder)
        if model.card.trained.get("sharpening", 1.0) != 1.0:
            sys.exit(f"{folder} stores sharpened embeddings: train it with sharpening = 1.0")
        dataset = load_for(model, model.card.trained["data"])
        encoder, anchors = kedge.Encoder(model), model.search_anchors.vectors
        queries, labels, _ = encode_split(encoder, dataset.validation)
        gallery, gallery_labels, _ = encode_split(encoder, dataset.train)
        for name, both in (("both sides", True), ("the query alone", False)):
            cells = []
            for power in POWERS:
                searched = turned(gallery, anchors, power) if both else gallery
                asked = turned(queries, anchors, power)
                found = exhaustive_scores(asked, labels, searched, gallery_labels, "cosine")
                cells.append(" / ".join(f"{100 * figure:.1f}" for figure in found))
            print(f"| {dataset.name}, {len(dataset.classes)} | {name} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
