"""Does the distance to the nearest anchor tell pictures of known classes from others?

    python benchmarks/embed.py MODEL DATA OUT.npz      # DATA holds classes that MODEL was not trained on, too
    python benchmarks/unknown.py MODEL OUT.npz

Prints the AUROC of seen against unseen classes' test pictures, and how many of each `known` lets pass.
"""

import sys

import numpy as np
from sklearn.metrics import roc_auc_score

import kedge
from kedge.calibration import nearest_anchor_distances


def main():
    folder, path = sys.argv[1:]
    model, stored = kedge.Model.load(folder), np.load(path)
    seen = stored["known"]
    distances = nearest_anchor_distances(stored["queries"], stored["anchors"])
    passed = model.calibration.known(distances)
    print("| classes seen | pictures | unseen: pictures | AUROC | seen called known | unseen called known |")
    print("|---|---|---|---|---|---|")
    print(
        f"| {len(stored['anchors'])} | {seen.sum():,} | {(~seen).sum():,} | {roc_auc_score(seen, -distances):.3f} "
        f"| {passed[seen].mean():.1%} | {passed[~seen].mean():.1%} |"
    )


if __name__ == "__main__":
    main()
