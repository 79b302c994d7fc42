"""Which settings are best with few pictures a class, by pictures that are neither trained on nor tested on?

    python benchmarks/few_shots.py cifar20 --loss cam-sphere --shots 10 --setting mixup=0 --setting epochs=60

Queries: 2,000 training pictures that were not drawn; galleries: the rest of the training pictures, and those drawn.
The test pictures are left alone. Writes a row in Markdown: mAP (L2 and cosine) and R@1 by cosine, mean over seeds.
"""

import argparse
import tempfile
import tomllib
from datetime import date
from importlib.metadata import version
from pathlib import Path

import numpy as np

import kedge
from kedge.evaluation import encode_split
from kedge.measurement import exhaustive_scores

QUERIES = 2000


def parse():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data")
    parser.add_argument("--loss", default="cam-sphere")
    parser.add_argument("--shots", type=int, default=10)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1])
    parser.add_argument("--setting", action="append", default=[], help="NAME=VALUE, as TOML")
    return parser.parse_args()


def measure(data, settings):
    """Return mAP by L2, by cosine and R@1 by cosine in the whole gallery, then in that of the shots."""
    with tempfile.TemporaryDirectory() as folder:
        model = kedge.train(data, Path(folder) / "model", evaluate=False, quiet=True, **settings)
        dataset = kedge.load_dataset(data, seed=settings["seed"], shots=settings["shots"])
        pictures = encode_split(kedge.Encoder(model), dataset.gallery)
    drawn = np.isin(pictures.hashes, dataset.train.hashes)
    asked = np.random.default_rng(settings["seed"]).permutation(np.flatnonzero(~drawn))[:QUERIES]
    rest = np.setdiff1d(np.arange(len(pictures)), asked)
    figures = []
    for gallery in (rest, np.flatnonzero(drawn)):
        of = pictures.vectors[asked], pictures.labels[asked], pictures.vectors[gallery], pictures.labels[gallery]
        figures += [exhaustive_scores(*of, "l2")[0], *exhaustive_scores(*of, "cosine")]
    return figures


def main():
    options = parse()
    given = tomllib.loads("\n".join(options.setting))
    found = [
        measure(options.data, {"loss": options.loss, "shots": options.shots, "seed": seed, **given})
        for seed in options.seeds
    ]
    means = [f"{100 * figure:.1f}" for figure in np.mean(found, axis=0)]
    said = ", ".join(options.setting) or "as it is"
    print(f"| {options.loss} | {options.shots} | {said} | {' | '.join(means)} |  {date.today()}, {version('kedge')}")


if __name__ == "__main__":
    main()
