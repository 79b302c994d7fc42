"""Does the distance to the nearest anchor tell pictures of known classes from others?

    python benchmarks/unknown.py MODEL DATA      # DATA holds classes that MODEL was not trained on, too

Embeds the test pictures of DATA. Prints the AUROC of those of seen against those of unseen classes, and how many of
each `known` lets pass, as it was calibrated when the model was trained.
"""

import sys

from sklearn.metrics import roc_auc_score

import kedge
from kedge.calibration import nearest_anchor_distances


def main():
    folder, data = sys.argv[1:]
    model = kedge.Model.load(folder)
    dataset = kedge.load_dataset(data, seed=int(model.card.trained.get("seed", 0)), membership=model.splits())
    encoder = kedge.Encoder(model)
    test = dataset.test.decode(encoder.image_size)
    distances = nearest_anchor_distances(encoder.encode(test.pixels), model.search_anchors.vectors)
    seen = [dataset.classes[label] in model.card.classes for label in test.labels]
    passed = model.calibration.known(distances)
    of_seen, of_unseen = (passed[[row is wanted for row in seen]] for wanted in (True, False))
    print("| classes seen | their pictures | others | AUROC | seen called known | others called known |")
    print("|---|---|---|---|---|---|")
    print(
        f"| {len(model.card.classes)} | {len(of_seen):,} | {len(of_unseen):,} | {roc_auc_score(seen, -distances):.3f} "
        f"| {of_seen.mean():.1%} | {of_unseen.mean():.1%} |"
    )


if __name__ == "__main__":
    main()
