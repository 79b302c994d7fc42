"""Galleries under fire: killed writers, many writers and readers at once, and a full disk."""

import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from kedge.distances import unit_length
from kedge.errors import WorkError
from kedge.gallery import Gallery
from tests.models import make_model

ROOT = Path(__file__).parents[1]
ALONE = {**os.environ, "OMP_NUM_THREADS": "1"}
EACH, ROUNDS, DIM = 40, 6, 16

WRITER = """
import sys, numpy as np, kedge
from kedge.distances import unit_length
folder, number, each, rounds, dim = sys.argv[1], *map(int, sys.argv[2:])
random = np.random.default_rng(number)
with kedge.Gallery.open(folder) as gallery:
    for turn in range(rounds):
        ids = [f"{number}-{turn}-{row}" for row in range(each)]
        gallery.add_vectors(unit_length(random.normal(size=(each, dim)).astype(np.float32)), ids=ids)
    gallery.remove([f"{number}-0-{row}" for row in range(each)])
"""
READER = """
import sys, collections, kedge
folder, each = sys.argv[1], int(sys.argv[2])
seen = 0
with kedge.Gallery.open(folder) as gallery:
    query = gallery.model.search_anchors.vectors[:1]
    while True:
        found = [hit.id.rsplit("-", 1)[0] for hit in gallery.search_vectors(query, 100_000, "exact")[0].hits]
        halves = {turn: count for turn, count in collections.Counter(found).items() if count != each}
        assert not halves, halves
        seen += 1
        print(seen, flush=True)
"""


def test_nothing_is_lost_when_the_writer_is_killed():
    command = [sys.executable, ROOT / "benchmarks" / "faults.py", "--kills", "20", "--longest", "0.7"]
    done = subprocess.run(command, capture_output=True, text=True, env=ALONE, timeout=280)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "20 kills, nothing lost" in done.stdout


def test_four_writers_and_four_readers_at_once(tmp_path):
    folder = tmp_path / "gallery"
    Gallery.create(folder, make_model(tmp_path / "model", dim=DIM)).close()
    readers = [
        subprocess.Popen([sys.executable, "-c", READER, str(folder), str(EACH)], stdout=subprocess.PIPE, env=ALONE)
        for _ in range(4)
    ]
    numbers = [str(number) for number in (EACH, ROUNDS, DIM)]
    writers = [
        subprocess.Popen([sys.executable, "-c", WRITER, str(folder), str(writer), *numbers], env=ALONE)
        for writer in range(4)
    ]
    assert [writer.wait(timeout=200) for writer in writers] == [0] * 4
    for reader in readers:
        assert reader.stdout.readline()  # it has read, and what it read was whole
        assert reader.poll() is None
        reader.kill()
        reader.wait()
    with Gallery.open(folder) as gallery:
        assert gallery.count() == 4 * (ROUNDS - 1) * EACH
        assert gallery.check() == []


@pytest.mark.skipif(os.name != "posix" or os.geteuid() != 0, reason="a file system can be mounted by root alone")
def test_a_full_disk_is_said_and_harms_nothing(tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", disk], capture_output=True).returncode:
        pytest.skip("no file system can be mounted here")
    try:
        random = np.random.default_rng(0)
        with Gallery.create(disk / "gallery", make_model(tmp_path / "model", dim=DIM)) as gallery:
            gallery.add_vectors(unit_length(random.normal(size=(100, DIM)).astype(np.float32)))
            with pytest.raises(WorkError, match="cannot be stored"):
                for _ in range(20):
                    gallery.add_vectors(unit_length(random.normal(size=(20_000, DIM)).astype(np.float32)))
            held = gallery.count()
            assert (held - 100) % 20_000 == 0
            assert len(gallery.search_vectors(gallery.model.search_anchors.vectors[:1], 5)[0].hits) == 5
        with Gallery.open(disk / "gallery") as gallery:
            assert gallery.count() == held
            assert gallery.check() == []
    finally:
        time.sleep(0.1)
        subprocess.run(["umount", "--lazy", disk], check=True)
