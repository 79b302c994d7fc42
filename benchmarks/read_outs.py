"""What would be found if a network trained by `cam-sphere` were read out otherwise than it is?

    python benchmarks/read_outs.py MODEL [MODEL ...]

The models are trained with `--config` of `sharpening = 1.0`, so that what they store can be read out here: sharpened
by several powers, and as probabilities, the softmax of the cosines to the anchors at several scales, ranked by their
cosine and by their product (the probability that two pictures are of one class). Queries: validation pictures, in those
trained on. Writes a table in Markdown: mAP and R@1.
"""

import sys
from datetime import date
from importlib.metadata import version

import numpy as np
import torch

import kedge
from kedge.encoder import Encoder
from kedge.evaluation import encode_split, load_for
from kedge.measurement import exhaustive_scores
from kedge.network import sharpened

POWERS = (1.5, 2.0, 3.0, 4.0)
SCALES = (4.0, 8.0, 12.0, 16.0, 24.0)


def probabilities(vectors, anchors, scale):
    logits = scale * vectors @ anchors.T
    shares = np.exp(logits - logits.max(axis=1, keepdims=True))
    return shares / shares.sum(axis=1, keepdims=True)


def by_product(queries, gallery):
    """Return vectors of which the cosines rank as the products of these do: the gallery's are padded to one length."""
    squares = (gallery**2).sum(axis=1)
    padding = np.sqrt(squares.max() - squares)
    return np.column_stack([queries, np.zeros(len(queries))]), np.column_stack([gallery, padding])


def read_outs(queries, gallery, anchors):
    """Yield (name, queries, gallery) of each read-out of unit embeddings."""
    yield "none: the embedding before sharpening", queries, gallery
    for power in POWERS:
        turned = (sharpened(torch.from_numpy(each), torch.from_numpy(anchors), power) for each in (queries, gallery))
        yield f"sharpened, power {power:g}", *(each.numpy() for each in turned)
    for scale in SCALES:
        shares = [probabilities(each, anchors, scale) for each in (queries, gallery)]
        yield f"softmax of scale {scale:g}", *shares
        yield f"softmax of scale {scale:g}, by the product", *by_product(*shares)


def main():
    columns, names = {}, []
    for folder in sys.argv[1:]:
        model = kedge.Model.load(folder)
        if model.card.trained.get("sharpening") != 1.0:
            sys.exit(f"{folder} is no cam-sphere model with sharpening = 1.0")
        dataset, encoder = load_for(model, model.card.trained["data"]), Encoder(model)
        queries, gallery = encode_split(encoder, dataset.validation), encode_split(encoder, dataset.train)
        names.append(f"{dataset.name}, {len(dataset.classes)} classes")
        anchors = model.search_anchors.vectors.astype(np.float64)
        vectors = queries.vectors.astype(np.float64), gallery.vectors.astype(np.float64)
        for name, asked, searched in read_outs(*vectors, anchors):
            found = exhaustive_scores(asked, queries.labels, searched, gallery.labels, "cosine")
            columns.setdefault(name, []).append(" / ".join(f"{100 * figure:.1f}" for figure in found))
    print(f"{date.today()}, kedge {version('kedge')}; mAP / R@1.\n")
    print(f"| read-out of the cosines to the anchors | {' | '.join(names)} |")
    print("|---" * (len(names) + 1) + "|")
    for name, cells in columns.items():
        print(f"| {name} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
