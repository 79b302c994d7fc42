"""How far is a model from the mAP that its guesses of the classes allow, and what is in the way?

    python benchmarks/class_ranking.py MODEL...

For each model, on the data that it was trained on: the share of queries (test pictures) and of gallery pictures (all
training pictures, those held out to validate on among them) whose nearest anchor by cosine is that of their class, and
mAP by cosine: of the search as it is, and as it would be if every gallery picture lay at the anchor of its class, so
that only the queries could be wrong. Writes a table in Markdown.
"""

import sys

import numpy as np

import kedge
from kedge.distances import unit_length
from kedge.encoder import Encoder
from kedge.evaluation import encode_split, load_for
from kedge.measurement import exhaustive_scores


def main():
    print(
        "| model | queries told right | gallery told right | mAP | mAP, gallery at its anchors |\n" + "|---" * 5 + "|"
    )
    for folder in sys.argv[1:]:
        model = kedge.Model.load(folder)
        dataset, encoder = load_for(model, model.card.trained["data"]), Encoder(model)
        anchors = unit_length(model.anchors.vectors)
        queries, gallery = encode_split(encoder, dataset.test), encode_split(encoder, dataset.gallery)
        told = [
            np.mean((unit_length(pictures.vectors) @ anchors.T).argmax(axis=1) == pictures.labels)
            for pictures in (queries, gallery)
        ]
        maps = [
            exhaustive_scores(queries.vectors, queries.labels, searched, gallery.labels, "cosine")[0]
            for searched in (gallery.vectors, anchors[gallery.labels])
        ]
        print(
            f"| {model.folder.name} | " + " | ".join(f"{100 * share:.1f}" for share in (*told, *maps)) + " |",
            flush=True,
        )


if __name__ == "__main__":
    main()
