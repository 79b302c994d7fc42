"""What do pooled features of a backbone's last stages know that the embedding does not, and how is it stored best?

    python benchmarks/stages.py DATA MODEL [MODEL ...]

The models are of the first classes of DATA. e: their unit embedding, before sharpening; f and g: the unit, centred
pooled features of the last stage and of the one before it. Each combination is a vector of these parts side by side.
Known classes: validation pictures in those trained on. Strange ones: the classes of DATA from the twenty-first on, five
at a time in sorted order, test pictures in training pictures. Writes a table in Markdown: mAP by cosine and R@1, mean ±
standard deviation over the models.
"""

import sys
from datetime import date
from importlib.metadata import version

import numpy as np
import torch

import kedge
from kedge.distances import unit_length
from kedge.measurement import exhaustive_scores
from kedge.torch_runtime import restore_network

FIRST_STRANGE, TOGETHER, AT_ONCE = 20, 5, 500
# Weights of e, f and g.
READ_OUTS = {
    "e": (1, 0, 0),
    "f": (0, 1, 0),
    "g": (0, 0, 1),
    "e, f": (1, 1, 0),
    "e, 2 f": (1, 2, 0),
    "e, g": (1, 0, 1),
    "f, g": (0, 1, 1),
    "e, f, g": (1, 1, 1),
    "e, 2 f, 2 g": (1, 2, 2),
    "e, f, 2 g": (1, 1, 2),
}


def encoded(network, split, size):
    """Return ([embeddings, pooled features of the last stage, of the one before it], labels) of a split's pictures."""
    decoded = split.decode(size)
    found = []
    with torch.inference_mode():
        for start in range(0, len(decoded.pixels), AT_ONCE):
            pooled, earlier = network.pool_stages(torch.from_numpy(decoded.pixels[start : start + AT_ONCE]))
            found.append((network.embed(pooled).numpy(), pooled.numpy(), earlier.numpy()))
    return [np.concatenate(part) for part in zip(*found, strict=True)], decoded.labels


def side_by_side(parts, means, weights):
    """Return unit vectors of the parts, centred by their means, each by its weight."""
    units = [
        weight * unit_length(part - mean) for part, mean, weight in zip(parts, means, weights, strict=True) if weight
    ]
    return unit_length(np.concatenate(units, axis=1))


def strange(data):
    """Yield (queries, gallery) of five strange classes at a time."""
    whole = kedge.load_dataset(data)
    for first in range(FIRST_STRANGE, len(whole.classes) - TOGETHER + 1, TOGETHER):
        yield [
            part[np.flatnonzero((part.labels >= first) & (part.labels < first + TOGETHER))]
            for part in (whole.test, whole.gallery)
        ]


def figures(model, data):
    """Return {read-out: [mAP and R@1 on known classes, mAP and R@1 on strange ones]}."""
    network, size = restore_network(model).network.eval(), model.card.preprocessing.image_size
    known = kedge.load_dataset(
        model.card.trained["data"], membership=model.splits(), max_classes=len(model.card.classes)
    )
    training, labels = encoded(network, known.train, size)
    means = [0.0, *(part.mean(axis=0) for part in training[1:])]
    tasks = [[encoded(network, known.validation, size), (training, labels)]]
    tasks += [[encoded(network, split, size) for split in splits] for splits in strange(data)]
    found = {}
    for name, weights in READ_OUTS.items():
        scores = np.array(
            [
                exhaustive_scores(
                    side_by_side(queries, means, weights),
                    query_labels,
                    side_by_side(gallery, means, weights),
                    gallery_labels,
                    "cosine",
                )
                for (queries, query_labels), (gallery, gallery_labels) in tasks
            ]
        )
        found[name] = [*scores[0], *scores[1:].mean(axis=0)]
    return found


def main():
    data, *folders = sys.argv[1:]
    by_loss = {}
    for folder in folders:
        model = kedge.Model.load(folder)
        by_loss.setdefault(model.card.trained["loss"], []).append(figures(model, data))
    print(f"{date.today()}, kedge {version('kedge')}, torch {torch.__version__}.\n")
    print("| loss | stored | known classes: mAP | R@1 | strange ones: mAP | R@1 |\n|---|---|---|---|---|---|")
    for loss, found in by_loss.items():
        for name in READ_OUTS:
            of_models = 100 * np.array([each[name] for each in found])
            spread = zip(of_models.mean(axis=0), of_models.std(axis=0), strict=True)
            print(f"| {loss} | {name} | {' | '.join(f'{mean:.1f} ± {deviation:.1f}' for mean, deviation in spread)} |")


if __name__ == "__main__":
    main()
