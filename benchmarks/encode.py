"""How fast do pictures become a searchable gallery, and does it matter how they were read?

    python benchmarks/encode.py --parts add known memory read input

add      files to a searchable gallery, beside the usual pipeline (Pillow, torchvision, eager torch, DataLoader workers
         on the same cores) and beside the runtime alone on ready-made tensors
known    `kedge add` again, on 100,000 pictures that are known already
memory   peak memory of an add, by the number of pictures
read     how far embeddings lie apart when pictures are read in other ways, and the resize from torchvision's
runtimes pictures a second of each runtime, and of the graph in int8, on ready-made tensors with one thread
precision mAP of a trained model, --model on --data, in float32 and bfloat16
input    share of a training step that the input pipeline takes, at 64 px

Photographs: two that come with scikit-learn, cut at random to some 512 px and saved as JPEG, seeded; networks with
random weights, which are as fast as trained ones. Prints tables in Markdown.
"""

import argparse
import os
import platform
import subprocess
import sys
import tempfile
import time
from datetime import date
from importlib.metadata import version
from pathlib import Path

import numpy as np
from PIL import Image

import kedge

# VmHWM is this program's own peak; getrusage's begins with that of the process which started it.
CHILD = """
import sys, kedge
with kedge.Gallery.open(sys.argv[1]) as gallery:
    report = gallery.add(sys.argv[2])
peak = next(line for line in open("/proc/self/status") if line.startswith("VmHWM"))
print(report.added, int(peak.split()[1]) / 1024)
"""


def parse():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--parts", nargs="+", default=[part for part in PARTS if part != "precision"], choices=list(PARTS)
    )
    parser.add_argument("--backbones", nargs="+", default=["resnet18", "resnet50", "swin_tiny_patch4_window7_224"])
    parser.add_argument("--pictures", type=int, default=512)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--model", type=Path)
    parser.add_argument("--data")
    parser.add_argument("--known", type=int, default=100_000)
    options = parser.parse_args()
    if "precision" in options.parts and not (options.model and options.data):
        parser.error("the part precision needs --model and --data")
    return options


def photographs(folder, count, side=512, seed=0):
    """Write `count` different photographs of about `side` pixels."""
    from sklearn.datasets import load_sample_images

    scenes = [Image.fromarray(image) for image in load_sample_images().images]
    random = np.random.default_rng(seed)
    folder.mkdir(parents=True)
    for number in range(count):
        scene = scenes[number % len(scenes)]
        width, height = random.integers(240, scene.height, size=2)
        left, top = random.integers(0, scene.width - width), random.integers(0, scene.height - height)
        cut = scene.crop((left, top, left + width, top + height))
        scale = side / min(width, height)
        cut.resize((round(width * scale), round(height * scale)), Image.Resampling.BICUBIC).save(
            folder / f"{number:06}.jpg", quality=90
        )
    return folder


def small_pictures(folder, count):
    """Write `count` different pictures of 16 x 16 pixels, a thousand to a folder."""
    random = np.random.default_rng(count)
    for number in range(count):
        place = folder / f"{number // 1000:03}"
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray(random.integers(0, 256, (16, 16, 3), dtype=np.uint8)).save(place / f"{number}.png")


def make_model(folder, backbone, size):
    """Write a model folder of a network with random weights and four random anchors."""
    import torch

    from kedge.anchors import Anchors
    from kedge.distances import unit_length
    from kedge.export import export_encoder
    from kedge.model import ANCHORS, ModelCard, Preprocessing
    from kedge.network import Network, StoredEmbedding

    torch.manual_seed(0)
    network = Network(backbone, image_size=size, dim=128, pretrained=False, on_sphere=True).eval()
    folder.mkdir(parents=True)
    export_encoder(StoredEmbedding(network, "embedding"), folder, size)
    names = tuple("abcd")
    points = unit_length(np.random.default_rng(0).normal(size=(4, 128)))
    card = ModelCard(
        kedge_version=version("kedge"),
        created_at="2026-01-01T00:00:00+00:00",
        classes=names,
        dim=128,
        distance="cosine",
        preprocessing=Preprocessing(image_size=size),
        trained={"backbone": backbone},
    )
    Anchors(names, points).save(folder / ANCHORS)
    card.write(folder)
    return network, kedge.Model.load(folder)


class Listed:
    """The usual data set: a file is opened by Pillow and prepared by torchvision."""

    def __init__(self, paths, size):
        from torchvision import transforms

        self.paths = paths
        self.prepare = transforms.Compose(
            [
                transforms.Resize(size),
                transforms.CenterCrop(size),
                transforms.ToTensor(),
                transforms.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
            ]
        )

    def __len__(self):
        return len(self.paths)

    def __getitem__(self, row):
        with Image.open(self.paths[row]) as image:
            return self.prepare(image.convert("RGB"))


def usual_pipeline(network, paths, size):
    """Return seconds of the usual pipeline, from files to embeddings in memory."""
    import torch
    from torch.utils.data import DataLoader

    started = time.perf_counter()
    loader = DataLoader(Listed(paths, size), batch_size=64, num_workers=os.cpu_count())
    vectors = []
    with torch.inference_mode():
        for pictures in loader:
            pooled = network.backbone(pictures)
            vectors.append(network.embed(pooled).numpy())
    np.concatenate(vectors)
    return time.perf_counter() - started


def measure_add(options, folder):
    from kedge.runtime import describe_runtime, has_bfloat16

    paths = photographs(folder / "photos", options.pictures)
    files = sorted(paths.iterdir())
    precisions = ["float32", "bfloat16"] if has_bfloat16() else ["float32"]
    print(f"{len(files)} photographs of 512 px; pictures a second, median of {options.rounds} rounds")
    run_by = (f"{precision} by {describe_runtime(precision, has_weights=True)}" for precision in precisions)
    print("; ".join(run_by) + "\n")
    print("| backbone | precision | usual pipeline | runtime, ready-made tensors | `kedge add` | / usual | / runtime |")
    print("|---|---|---|---|---|---|---|", flush=True)
    for backbone in options.backbones:
        network, model = make_model(folder / backbone, backbone, 224)
        usual, runtime, ours = [], {each: [] for each in precisions}, {each: [] for each in precisions}
        count = len(files) if backbone == "resnet18" else len(files) // 2
        squares = np.random.default_rng(0).integers(0, 256, (128, 224, 224, 3), dtype=np.uint8)
        chosen = folder / f"chosen-{backbone}"
        chosen.mkdir()
        for file in files[:count]:
            os.link(file, chosen / file.name)
        for number in range(options.rounds):
            usual.append(count / usual_pipeline(network, files[:count], 224))
            for precision in precisions:
                place = folder / f"gallery-{backbone}-{precision}-{number}"
                with kedge.Gallery.create(place, model, precision=precision) as gallery:
                    encoder = gallery.encoder
                    encoder.encode(squares[:1])
                    started = time.perf_counter()
                    encoder.encode(squares)
                    runtime[precision].append(len(squares) / (time.perf_counter() - started))
                    started = time.perf_counter()
                    gallery.add(chosen)
                    gallery.search(files[0], 5)
                    ours[precision].append(count / (time.perf_counter() - started))
        for precision in precisions:
            rates = [float(np.median(rates)) for rates in (usual, runtime[precision], ours[precision])]
            cells = " | ".join(f"{rate:.1f}" for rate in rates)
            shares = f"{rates[2] / rates[0]:.2f}x | {rates[2] / rates[1]:.2f}"
            print(f"| {backbone} | {precision} | {cells} | {shares} |", flush=True)
    print()


def measure_known(options, folder):
    """Small pictures, so that the first add takes minutes and not hours; the second reads none of them."""
    _, model = make_model(folder / "model", "resnet10-half", 32)
    small_pictures(folder / "known", options.known)
    with kedge.Gallery.create(folder / "gallery", model) as gallery:
        started = time.perf_counter()
        gallery.add(folder / "known")
        first = time.perf_counter() - started
    with kedge.Gallery.open(folder / "gallery") as gallery:
        started = time.perf_counter()
        report = gallery.add(folder / "known")
        again = time.perf_counter() - started
    print("| known pictures | first add, s | again, s | unchanged |\n|---|---|---|---|")
    print(f"| {options.known:,} | {first:.0f} | {again:.1f} | {report.unchanged:,} |\n", flush=True)


def measure_memory(options, folder):
    """Small pictures, as above: what grows with their number does so whatever their size."""
    _, model = make_model(folder / "model", "resnet10-half", 32)
    print("| pictures | peak memory of `add`, MiB |\n|---|---|")
    for count in (1, 1000, 10_000, options.known):
        small_pictures(folder / f"pictures-{count}", count)
        kedge.Gallery.create(folder / f"gallery-{count}", model).close()
        command = [sys.executable, "-c", CHILD, str(folder / f"gallery-{count}"), str(folder / f"pictures-{count}")]
        added, peak = subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()
        print(f"| {int(added):,} | {float(peak):.0f} |", flush=True)
    print()


def measure_read(_, folder):
    from torchvision.transforms import v2

    from kedge.picture import read_for_encoder, read_picture, square

    _, model = make_model(folder / "model", "resnet18", 224)
    encoder = kedge.Encoder(model)
    files = sorted(photographs(folder / "photos", 64).iterdir())
    full = [read_picture(file).image for file in files]
    ways = {
        "reduced, as training, `add` and searches read": [read_for_encoder(file, 224).image for file in files],
        "the same from bytes": [read_for_encoder(file.read_bytes(), 224).image for file in files],
    }
    plain = encoder.encode_pictures(full)
    print("| read | relative distance of embeddings from those of a full decode, mean | most |\n|---|---|---|")
    for name, images in ways.items():
        apart = np.linalg.norm(encoder.encode_pictures(images) - plain, axis=1) / np.linalg.norm(plain, axis=1)
        print(f"| {name} | {apart.mean():.1e} | {apart.max():.1e} |")
    resize = v2.Compose(
        [v2.Resize(224, interpolation=v2.InterpolationMode.BICUBIC, antialias=True), v2.CenterCrop(224)]
    )
    tensor = v2.Compose([v2.ToImage(), *resize.transforms])
    # Of squares: a middle that falls between two pixels is cut there by us, and beside it by torchvision.
    full = [image.crop((0, 0, min(image.size), min(image.size))) for image in full]
    ours = np.stack([square(image, 224) for image in full]).astype(int)
    pillow = np.stack([np.asarray(resize(image)) for image in full]).astype(int)
    tensors = np.stack([tensor(image).permute(1, 2, 0).numpy() for image in full]).astype(int)
    print("\n| resize against torchvision's | mean difference of a value in 0..255 | most |\n|---|---|---|")
    for name, others in (("on Pillow images", pillow), ("on tensors", tensors)):
        print(f"| {name} | {np.abs(ours - others).mean():.3f} | {np.abs(ours - others).max()} |")
    print(flush=True)


def measure_input(*_):
    import torch

    from kedge.augmentation import Augmentation
    from kedge.network import Network

    print("| backbone, 64 px, batches of 100 | a step, ms | of it picking and augmenting | share |\n|---|---|---|---|")
    for backbone in ("resnet10-half", "resnet18"):
        network = Network(backbone, image_size=64, dim=64, pretrained=False, on_sphere=True)
        augment = Augmentation(view_size=network.view_size, flip=True, brightness=0.4)
        optimizer = torch.optim.AdamW(network.parameters())
        pictures = torch.randint(0, 256, (10_000, 64, 64, 3), dtype=torch.uint8)
        random = torch.Generator().manual_seed(0)
        steps, inputs = [], []
        for _ in range(12):
            started = time.perf_counter()
            views = augment(pictures[torch.randint(0, len(pictures), (100,), generator=random)], random)
            inputs.append(time.perf_counter() - started)
            network(views)[0].square().sum().backward()
            optimizer.step()
            optimizer.zero_grad()
            steps.append(time.perf_counter() - started)
        step, part = 1000 * np.median(steps), 1000 * np.median(inputs)
        print(f"| {backbone} | {step:.0f} | {part:.1f} | {100 * part / step:.1f} % |", flush=True)
    print()


def measure_runtimes(options, folder):
    from kedge.quantization import write_int8_graph
    from kedge.runtime import has_bfloat16

    for name in ("train/a", "train/b"):
        photographs(folder / "photos" / name, 64, seed=len(name) + ord(name[-1]))
    split = kedge.load_dataset(folder / "photos", validation_share=0).train
    squares = np.random.default_rng(0).integers(0, 256, (32, 224, 224, 3), dtype=np.uint8)
    names = ["onnxruntime", "openvino"] + (["openvino, bfloat16"] if has_bfloat16() else []) + ["onnxruntime, int8"]
    print(f"| backbone | {' | '.join(names)} | int8 / float32 |\n|{'---|' * (len(names) + 2)}")
    for backbone in options.backbones:
        _, model = make_model(folder / backbone, backbone, 224)
        encoders = [kedge.Encoder(model, runtime=name, threads=1) for name in ("onnxruntime", "openvino")]
        if has_bfloat16():
            with kedge.Gallery.create(folder / f"bfloat16-{backbone}", model, precision="bfloat16") as gallery:
                encoders.append(kedge.Encoder(gallery.model, threads=1))
        write_int8_graph(model, split, model.encoder_path)
        encoders.append(kedge.Encoder(model, runtime="onnxruntime", threads=1))
        rates = [[] for _ in encoders]
        for _ in range(options.rounds):
            for encoder, found in zip(encoders, rates, strict=True):
                started = time.perf_counter()
                encoder.encode(squares)
                found.append(len(squares) / (time.perf_counter() - started))
        middle = [float(np.median(found)) for found in rates]
        print(
            f"| {backbone} | {' | '.join(f'{rate:.1f}' for rate in middle)} | {middle[-1] / middle[0]:.2f}x |",
            flush=True,
        )
    print()


def measure_precision(options, folder):
    """The mAP of the model's own distance, and how far embeddings of test pictures lie from those in float32."""
    plainly = kedge.Encoder(kedge.Model.load(options.model), runtime="onnxruntime")
    pictures = kedge.load_dataset(options.data).test[:1000].decode(plainly.image_size).pixels
    plain = plainly.encode(pictures)
    print("| precision | runtime | mAP | R@1 | relative distance from ONNX Runtime's float32, mean | most |")
    print("|---|---|---|---|---|---|")
    for precision in ("float32", "bfloat16"):
        with kedge.Gallery.create(folder / precision, options.model, precision=precision) as gallery:
            figures = kedge.evaluate(gallery.model, options.data).headline()
            vectors = gallery.encoder.encode(pictures)
            apart = np.linalg.norm(vectors - plain, axis=1) / np.linalg.norm(plain, axis=1)
            print(
                f"| {precision} | {gallery.info()['runtime']} | {100 * figures['map']:.2f} "
                f"| {100 * figures['recall_at_1']:.2f} | {apart.mean():.1e} | {apart.max():.1e} |",
                flush=True,
            )
    print()


PARTS = {
    "add": measure_add,
    "known": measure_known,
    "memory": measure_memory,
    "read": measure_read,
    "runtimes": measure_runtimes,
    "precision": measure_precision,
    "input": measure_input,
}


def main():
    options = parse()
    print(
        f"{date.today()}, kedge {version('kedge')}, onnxruntime {version('onnxruntime')}, torch {version('torch')}, "
        f"{platform.machine()}, {os.cpu_count()} cores.\n"
    )
    for part in options.parts:
        with tempfile.TemporaryDirectory() as folder:
            PARTS[part](options, Path(folder))


if __name__ == "__main__":
    main()
