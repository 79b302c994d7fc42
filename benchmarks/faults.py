"""Is anything lost when the writer dies? Kill it with SIGKILL at random instants, and see what the gallery holds.

    python benchmarks/faults.py --kills 200

A writer adds vectors and pictures, removes, compacts, restores older versions, and goes over to another model's anchors
and back (reindex). It keeps a journal: each operation is noted before it begins and after it was acknowledged. It is
killed at a random instant. The next writer first compares the gallery with the journal: all that was acknowledged must
be there, each row as it was given and filed under its nearest anchor; what was under way is done wholly or not at all.
`Gallery.check` must find nothing. Exit code 1 if anything is amiss.
"""

import argparse
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

DIM, CLASSES = 16, ("red", "green", "blue")
OPERATIONS = ("vectors", "photos", "remove", "compact", "restore", "reindex")


def parse():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--longest", type=float, default=1.0, help="most seconds that a writer works before it dies")
    parser.add_argument("--writer", type=Path, help=argparse.SUPPRESS)
    return parser.parse_args()


class Journal:
    """What was begun and what was acknowledged; a line each, written at once."""

    def __init__(self, folder):
        self.path = folder / "journal.txt"
        text = self.path.read_bytes() if self.path.exists() else b""
        whole = text[: text.rfind(b"\n") + 1]
        if whole != text:
            # Killed while it wrote a line: the next one must not go on with that.
            os.truncate(self.path, len(whole))
        self.lines = [json.loads(line) for line in whole.splitlines()]

    def write(self, **said):
        """Append a line."""
        with self.path.open("ab", buffering=0) as file:
            file.write((json.dumps(said) + "\n").encode())
        self.lines.append(said)

    def states(self):
        """Return (ids acknowledged, ids if what is under way is done; None when nothing is)."""
        now, next_, under_way = set(), None, None
        for line in self.lines:
            if "begin" in line:
                under_way, next_ = line, set(line["ids"])
            elif line.get("done") or line.get("settled") == "after":
                now, under_way, next_ = next_, None, None
            elif line.get("settled") == "before":
                under_way, next_ = None, None
        return now, next_, under_way and under_way["begin"]


def vector_of(key):
    """Return the vector of an id: rows are known by what they must hold."""
    drawn = np.random.default_rng(int(key, 16) % 2**32).normal(size=DIM)
    return (drawn / np.linalg.norm(drawn)).astype(np.float32)


def settle(gallery, journal, photos):
    """Compare the gallery with the journal; raise AssertionError where they disagree."""
    now, after, under_way = journal.states()
    rows = gallery._table.read(["id", "embedding", "anchor", "thumbnail"]).to_pylist()
    held = {row["id"] for row in rows}
    assert len(rows) == len(held), "a picture is stored twice"
    assert held in (now, after), (
        f"{under_way}: {len(now - held)} acknowledged pictures are gone, {len(held - now)} were not acknowledged"
    )
    for row in rows:
        if row["id"] in photos:
            assert row["thumbnail"] is not None
            assert abs(np.linalg.norm(row["embedding"]) - 1) < 1e-5
        else:
            assert np.array_equal(np.asarray(row["embedding"], dtype=np.float32), vector_of(row["id"])), "a row changed"
    nearest = gallery.model.search_anchors.nearest(np.array([row["embedding"] for row in rows]).reshape(-1, DIM))
    assert [row["anchor"] for row in rows] == [gallery.model.card.classes[anchor] for anchor in nearest], "misfiled"
    damage = gallery.check()
    assert damage == [], damage
    assert {row["id"] for row in rows} == {
        hit.id for hit in gallery.search_vectors(vector_of("0")[None], 10**6)[0].hits
    }
    journal.write(settled="after" if after is not None and held == after else "before", operation=under_way)


def work(folder):
    """Settle, then do one random operation after another until killed."""
    import kedge
    from kedge.picture import content_hash

    journal, draw = Journal(folder), random.Random(os.getpid() + time.time_ns())
    groups = [sorted(group.glob("*.png")) for group in sorted((folder / "photos").iterdir())]
    ids_of = [{content_hash(path.read_bytes()) for path in group} for group in groups]
    with kedge.Gallery.open(folder / "gallery") as gallery:
        settle(gallery, journal, set().union(*ids_of))
        states = {}
        print("ready", flush=True)
        while True:
            now, _, _ = journal.states()
            states[gallery._table.version] = sorted(now)
            operation = draw.choice([*OPERATIONS, "vectors", "photos"])
            if operation == "vectors":
                new = [f"{draw.getrandbits(64):016x}" for _ in range(draw.choice([1, 30, 3000]))]
                journal.write(begin=operation, ids=sorted({*now, *new}))
                gallery.add_vectors(np.stack([vector_of(key) for key in new]), ids=new)
            elif operation == "photos":
                group = draw.randrange(len(groups))
                journal.write(begin=operation, ids=sorted(now | ids_of[group]))
                gallery.add(groups[group][0].parent)
            elif operation == "remove":
                gone = draw.sample(sorted(now), len(now) // 2)
                journal.write(begin=operation, ids=sorted(now.difference(gone)))
                gallery.remove(gone)
            elif operation == "compact":
                journal.write(begin=operation, ids=sorted(now))
                gallery.compact()
                states.clear()
            elif operation == "reindex":
                journal.write(begin=operation, ids=sorted(now))
                models = [kedge.Model.load(folder / name) for name in ("model", "other")]
                gallery.reindex(next(model for model in models if model.fingerprint != gallery.model.fingerprint))
                states.clear()
            else:
                version = draw.choice(sorted(states))
                journal.write(begin=operation, ids=states[version])
                gallery.restore(version)
            journal.write(done=operation)


def main():
    options = parse()
    if options.writer:
        work(options.writer)
        return
    root = Path(__file__).parents[1]
    sys.path.insert(0, str(root))
    from tests.models import make_model
    from tests.pictures import draw_classes

    import kedge

    draw = random.Random(options.seed)
    command = [sys.executable, __file__, "--writer"]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for group in range(4):
            draw_classes(folder / "drawn", CLASSES, each=2, size=32, seed=group)
            (folder / "drawn").rename(folder / f"drawn{group}")
            (folder / "photos" / str(group)).mkdir(parents=True)
            for number, path in enumerate(sorted((folder / f"drawn{group}").rglob("*.png"))):
                path.rename(folder / "photos" / str(group) / f"{number}.png")
        model = make_model(folder / "model", classes=CLASSES, dim=DIM)
        shutil.copytree(model.folder, folder / "other")
        other = kedge.Anchors(model.anchors.names, np.roll(model.anchors.vectors, 1, axis=1))
        other.save(folder / "other" / "anchors.safetensors")
        kedge.Gallery.create(folder / "gallery", model).close()
        for _ in range(options.kills):
            writer = subprocess.Popen([*command, str(folder)], stdout=subprocess.PIPE, text=True)
            if not writer.stdout.readline():
                sys.exit("the gallery and the journal disagree: see above")
            time.sleep(draw.uniform(0, options.longest))
            writer.send_signal(signal.SIGKILL)
            writer.wait()
        last = subprocess.Popen([*command, str(folder)], stdout=subprocess.PIPE, text=True)
        if not last.stdout.readline():
            sys.exit("the gallery and the journal disagree: see above")
        last.kill()
        last.wait()
        lines = Journal(folder).lines
        settled = [line for line in lines if "settled" in line and line["operation"]]
        print("| operation | acknowledged | killed under way | of these done | not done |")
        print("|---|---|---|---|---|")
        for operation in OPERATIONS:
            cut = [line["settled"] for line in settled if line["operation"] == operation]
            done = sum(line.get("done") == operation for line in lines)
            print(f"| {operation} | {done} | {len(cut)} | {cut.count('after')} | {cut.count('before')} |")
        print(f"\n{options.kills} kills, nothing lost; {len(Journal(folder).states()[0])} pictures at the end")


if __name__ == "__main__":
    main()
