"""The published sets: the real loading code, on small files in the official formats that the tests make."""

import hashlib
import io
import json
import pickle
import tarfile
import urllib.request
import zipfile

import numpy as np
import pytest
from PIL import Image

from kedge.datasets import cache_folder, load_dataset, published
from kedge.errors import MissingPartError, WorkError


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("KEDGE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def jpeg(seed, size=16):
    buffer = io.BytesIO()
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (size, size, 3)).astype(np.uint8)).save(buffer, "JPEG")
    return buffer.getvalue()


def pack(path, files):
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w:gz") as archive:
        for name, data in files.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            archive.addfile(entry, io.BytesIO(data))
    return hashlib.md5(path.read_bytes()).hexdigest()


def test_digits_are_whole_and_not_to_be_mirrored(cache):
    dataset = load_dataset("digits")
    assert len(dataset.gallery) + len(dataset.test) == 1797
    assert dataset.classes == tuple("0123456789")
    assert not dataset.mirror
    # The first digit of scikit-learn's set is a nought whose brightest value, 16, is white.
    from sklearn.datasets import load_digits

    path = next((cache / "digits").glob("*/0/000000.png"))
    assert np.array_equal(np.asarray(Image.open(path)), (load_digits().images[0] * 255 / 16).round())
    assert load_dataset("digits").test.paths == dataset.test.paths


def test_cifar100(cache, monkeypatch):
    from torchvision.datasets import CIFAR100

    random = np.random.default_rng(0)
    names = ["apple", "bear"]

    def batch(count):
        data = random.integers(0, 256, (count, 3072)).astype(np.uint8)
        return {"data": data, "fine_labels": [number % 2 for number in range(count)]}

    batches = {"train": batch(12), "test": batch(4)}
    files = {name: pickle.dumps(content) for name, content in batches.items()}
    files["meta"] = pickle.dumps({"fine_label_names": names})
    total = pack(
        cache / "downloads" / "cifar-100-python.tar.gz", {f"cifar-100-python/{n}": d for n, d in files.items()}
    )
    sums = {name: hashlib.md5(data).hexdigest() for name, data in files.items()}
    monkeypatch.setattr(CIFAR100, "tgz_md5", total)
    monkeypatch.setattr(CIFAR100, "train_list", [["train", sums["train"]]])
    monkeypatch.setattr(CIFAR100, "test_list", [["test", sums["test"]]])
    monkeypatch.setattr(CIFAR100, "meta", {"filename": "meta", "key": "fine_label_names", "md5": sums["meta"]})
    dataset = load_dataset("cifar100", validation_share=0.0)
    assert dataset.classes == ("apple", "bear")
    assert (len(dataset.train), len(dataset.test)) == (12, 4)
    pixels = batches["train"]["data"][0].reshape(3, 32, 32).transpose(1, 2, 0)
    assert np.array_equal(np.asarray(Image.open(cache / "cifar100" / "train" / "apple" / "000000.png")), pixels)
    assert dataset.mirror


def test_svhn(cache, monkeypatch):
    from scipy.io import savemat
    from torchvision.datasets import SVHN

    random = np.random.default_rng(0)
    (cache / "downloads").mkdir(parents=True)
    listed = dict(SVHN.split_list)
    for split, count in (("train", 12), ("test", 4)):
        pixels = random.integers(0, 256, (32, 32, 3, count)).astype(np.uint8)
        # The published files label the nought 10.
        labels = np.array([[10 if number % 2 else 1] for number in range(count)])
        path = cache / "downloads" / f"{split}_32x32.mat"
        savemat(path, {"X": pixels, "y": labels})
        listed[split] = [listed[split][0], path.name, hashlib.md5(path.read_bytes()).hexdigest()]
    monkeypatch.setattr(SVHN, "split_list", listed)
    dataset = load_dataset("svhn", validation_share=0.0)
    assert dataset.classes == ("0", "1")
    assert (len(dataset.train), len(dataset.test)) == (12, 4)
    # The loop's last pixels are the test part's; its second picture is a nought.
    assert np.array_equal(np.asarray(Image.open(cache / "svhn" / "test" / "0" / "000013.png")), pixels[..., 1])
    assert not dataset.mirror


def test_food101(cache, monkeypatch):
    from torchvision.datasets import Food101

    seed, files, meta = 0, {}, {"train": {}, "test": {}}
    for number, dish in enumerate(("apple_pie", "baklava")):
        for split, count in (("train", 4), ("test", 2)):
            names = [f"{dish}/{1000 * number + 10 * (split == 'test') + row}" for row in range(count)]
            meta[split][dish] = names
            files |= {f"food-101/images/{name}.jpg": jpeg(seed := seed + 1) for name in names}
    for split, listed in meta.items():
        lines = [name for names in listed.values() for name in names]
        files[f"food-101/meta/{split}.txt"] = "\n".join(lines).encode()
        files[f"food-101/meta/{split}.json"] = json.dumps(listed).encode()
    files["food-101/meta/classes.txt"] = b"apple_pie\nbaklava"
    files["food-101/meta/labels.txt"] = b"Apple pie\nBaklava"
    monkeypatch.setattr(Food101, "_MD5", pack(cache / "downloads" / "food-101.tar.gz", files))
    dataset = load_dataset("food101", validation_share=0.0)
    assert dataset.classes == ("apple_pie", "baklava")
    assert (len(dataset.train), len(dataset.test)) == (8, 4)
    assert dataset.test.decode(8).failures == ()
    (cache / "downloads" / "food-101.tar.gz").unlink()
    assert load_dataset("food101").test.paths == dataset.test.paths  # from the cache
    assert sorted(path.name for path in cache.iterdir()) == ["downloads", "food101"]


def test_food101_cut_short_while_unpacking_is_not_taken_for_whole(cache, monkeypatch):
    from torchvision.datasets import Food101

    files = {"food-101/images/apple_pie/1.jpg": jpeg(1), "food-101/meta/train.txt": b"apple_pie/1"}
    monkeypatch.setattr(Food101, "_MD5", pack(cache / "downloads" / "food-101.tar.gz", files))

    def full(self, path, **_):
        self.extract("food-101/images/apple_pie/1.jpg", path)
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(tarfile.TarFile, "extractall", full)
    with pytest.raises(WorkError, match=r"food101 could not be written \(No space left.*KEDGE_CACHE"):
        load_dataset("food101")
    assert [path.name for path in cache.iterdir()] == ["downloads"]


def tiny_imagenet(path):
    with zipfile.ZipFile(path, "w") as archive:
        seed = 0
        for wnid in ("n01", "n02"):
            for number in range(4):
                archive.writestr(f"tiny-imagenet-200/train/{wnid}/images/{wnid}_{number}.JPEG", jpeg(seed := seed + 1))
        rows = []
        for number, wnid in enumerate(("n02", "n01")):
            archive.writestr(f"tiny-imagenet-200/val/images/val_{number}.JPEG", jpeg(seed := seed + 1))
            rows.append(f"val_{number}.JPEG\t{wnid}\t0\t0\t63\t63")
        archive.writestr("tiny-imagenet-200/val/val_annotations.txt", "\n".join(rows))
    return hashlib.md5(path.read_bytes()).hexdigest()


def test_tiny_imagenet_is_fetched_checked_and_sorted(tmp_path, cache, monkeypatch):
    archive = tmp_path / "published.zip"
    monkeypatch.setattr(published, "TINY_IMAGENET_URL", archive.as_uri())
    monkeypatch.setattr(published, "TINY_IMAGENET_MD5", tiny_imagenet(archive))
    dataset = load_dataset("tiny-imagenet", validation_share=0.0)
    assert [dataset.classes[label] for label in dataset.test.labels] == ["n02", "n01"]
    assert len(dataset.train) == 8
    archive.unlink()
    assert len(load_dataset("tiny-imagenet").test) == 2  # from the cache
    assert {path.name for path in cache.iterdir()} == {"downloads", "tiny-imagenet-200"}


def test_wrong_checksum_and_failing_download_leave_nothing_half_done(tmp_path, cache, monkeypatch):
    archive = tmp_path / "published.zip"
    tiny_imagenet(archive)
    monkeypatch.setattr(published, "TINY_IMAGENET_URL", archive.as_uri())
    with pytest.raises(WorkError, match=r"published\.zip gave has MD5.*try again"):
        load_dataset("tiny-imagenet")
    assert [path.name for path in cache.rglob("*")] == ["downloads"]
    (cache / "downloads" / "tiny-imagenet-200.zip").write_bytes(b"put here by hand, and cut short")
    with pytest.raises(WorkError, match=r"downloads/tiny-imagenet-200\.zip has MD5.*remove the file"):
        load_dataset("tiny-imagenet")
    (cache / "downloads" / "tiny-imagenet-200.zip").unlink()
    monkeypatch.setattr(published, "TINY_IMAGENET_URL", (tmp_path / "none.zip").as_uri())
    with pytest.raises(WorkError, match=r"could not be fetched.*put the file at"):
        load_dataset("tiny-imagenet")
    assert list((cache / "downloads").iterdir()) == []


@pytest.mark.parametrize("name", ["cifar100", "svhn", "food101"])
def test_no_network_is_one_clear_error(name, monkeypatch):
    def refuse(*_, **__):
        raise urllib.request.URLError("no route to host")

    monkeypatch.setattr("urllib.request.urlopen", refuse)
    with pytest.raises(WorkError, match=rf"{name} could not be fetched.*put the published files into"):
        load_dataset(name)
    assert not (cache_folder() / name).exists()


def test_unpacking_that_is_stopped_leaves_nothing(cache):
    def stopped():
        yield "train", "a", np.zeros((4, 4), dtype=np.uint8)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        published._write_pictures(cache / "set", stopped())
    assert list(cache.iterdir()) == []


def test_cache_that_cannot_be_written_is_one_clear_error(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("KEDGE_CACHE", str(tmp_path / "file" / "cache"))
    for name in ("digits", "tiny-imagenet"):
        with pytest.raises(WorkError, match=r"could not be written \(Not a directory\).*KEDGE_CACHE"):
            load_dataset(name)


def test_faster_process_wins(cache):
    def rival():
        (cache / "set" / "train" / "a").mkdir(parents=True)
        yield "train", "b", np.zeros((4, 4), dtype=np.uint8)

    published._write_pictures(cache / "set", rival())
    assert [path.name for path in cache.rglob("*")] == ["set", "train", "a"]


def test_missing_torchvision_names_the_command(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "torchvision", None)
    with pytest.raises(MissingPartError, match=r"pip install 'kedge\[train\]'"):
        load_dataset("cifar100")
