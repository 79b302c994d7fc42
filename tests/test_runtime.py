"""Runtimes: equal embeddings whichever runs the graph; a precision is fixed in a gallery, or refused."""

import subprocess
import sys

import numpy as np
import pytest
import torch

import kedge
from kedge import runtime, torch_runtime
from kedge.errors import InputError, MissingPartError, ModelError
from tests.models import embed, make_model, projection
from tests.pictures import draw_classes

CLASSES = ["red", "green", "blue"]


@pytest.fixture
def squares():
    return np.random.default_rng(0).integers(0, 256, (70, 16, 16, 3), dtype=np.uint8)


@pytest.mark.parametrize("name", ["auto", "onnxruntime", "openvino"])
def test_every_runtime_gives_the_vectors_worked_out_by_hand(name, squares, tmp_path):
    model = make_model(tmp_path / "model", classes=CLASSES, distance="l2")
    found = kedge.Encoder(model, runtime=name, threads=1).encode(squares)
    np.testing.assert_allclose(found, embed(squares, projection(16)), atol=1e-5)


def test_the_choice_goes_by_what_the_machine_has(monkeypatch, tmp_path):
    monkeypatch.setattr(runtime, "_providers", lambda: ["CPUExecutionProvider"])
    for has, expected in ((True, "openvino"), (False, "onnxruntime")):
        monkeypatch.setattr(runtime, "has_bfloat16", lambda has=has: has)
        assert runtime.best_runtime("float32", has_weights=False) == expected
        model = make_model(tmp_path / expected, classes=CLASSES)
        assert model.info()["runtime"].startswith(expected)
    monkeypatch.setattr(runtime, "_providers", lambda: ["CUDAExecutionProvider", "CPUExecutionProvider"])
    assert runtime.best_runtime("float32", has_weights=True) == "onnxruntime"
    assert "CUDA" in runtime.describe_runtime("int8", has_weights=True)


def test_a_broken_openvino_is_left_alone(monkeypatch, tmp_path):
    def broken():
        raise ImportError("libopenvino.so: cannot open shared object file")

    monkeypatch.setattr(runtime, "_openvino_core", broken)
    monkeypatch.setattr(runtime, "_providers", lambda: ["CPUExecutionProvider"])
    model = make_model(tmp_path / "model", classes=CLASSES)
    assert model.info()["runtime"].startswith("onnxruntime")
    assert kedge.Encoder(model).dim == model.card.dim


def test_a_gpu_takes_models_that_have_their_weights(monkeypatch):
    monkeypatch.setattr(runtime, "_providers", lambda: ["CPUExecutionProvider"])
    monkeypatch.setattr(runtime, "has_bfloat16", lambda: False)
    monkeypatch.setattr(runtime, "has_gpu", lambda: True)
    assert runtime.best_runtime("float32", has_weights=True) == "torch"
    assert runtime.best_runtime("bfloat16", has_weights=True) == "torch"
    assert "on CUDA" in runtime.describe_runtime("float32", has_weights=True)
    assert runtime.best_runtime("int8", has_weights=True) == "onnxruntime"
    assert runtime.best_runtime("float32", has_weights=False) == "onnxruntime"


def test_a_gpu_that_cannot_be_used_leaves_the_graph(monkeypatch, tmp_path, squares):
    """Nobody asked for torch: without what builds networks, or on a GPU that others have filled, the graph is run."""
    model = make_model(tmp_path / "model", classes=CLASSES, distance="l2")
    (model.folder / "weights.safetensors").touch()
    monkeypatch.setattr(runtime, "_providers", lambda: ["CPUExecutionProvider"])
    monkeypatch.setattr(runtime, "has_gpu", lambda: True)

    def filled(_):
        raise RuntimeError("CUDA out of memory")

    with monkeypatch.context() as patch:
        patch.setattr(torch_runtime, "restore_network", lambda _: torch.nn.Linear(1, 1))
        patch.setattr(torch_runtime, "_encoding", lambda *_: filled)
        found = kedge.Encoder(model).encode(squares)
        np.testing.assert_allclose(found, embed(squares, projection(16)), atol=1e-5)
        with pytest.raises(ModelError, match="CUDA out of memory"):
            kedge.Encoder(model, runtime="torch")
    monkeypatch.setitem(sys.modules, "kedge.torch_runtime", None)
    np.testing.assert_array_equal(kedge.Encoder(model).encode(squares), found)


def test_bfloat16_is_fixed_in_the_gallery(monkeypatch, tmp_path):
    draw_classes(tmp_path / "photos", CLASSES, each=3, size=32, seed=0)
    model = make_model(tmp_path / "model", classes=CLASSES)
    with kedge.Gallery.create(tmp_path / "gallery", model, precision="bfloat16") as gallery:
        assert gallery.info()["precision"] == "bfloat16"
        assert gallery.model.fingerprint != model.fingerprint
        assert not gallery.model.encodes_like(model)
    # Where the CPU has it, OpenVINO runs it; a CPU that only says so works in float32, which is as near.
    monkeypatch.setattr(runtime, "has_bfloat16", lambda: True)
    with kedge.Gallery.open(tmp_path / "gallery") as gallery:
        assert gallery.add(tmp_path / "photos").added == 9
        gallery.reindex(make_model(tmp_path / "other", classes=CLASSES, seed=1))
        assert gallery.info()["precision"] == "bfloat16"
    monkeypatch.setattr(runtime, "has_bfloat16", lambda: False)
    with (
        kedge.Gallery.open(tmp_path / "gallery") as gallery,
        pytest.raises(ModelError, match=r"bfloat16.*CPU that has it"),
    ):
        assert gallery.info()["runtime"].startswith("none: bfloat16 needs")
        gallery.search(next((tmp_path / "photos" / "red").iterdir()))
    opened = kedge.Gallery.open(tmp_path / "gallery", runtime="onnxruntime")
    with opened as gallery, pytest.raises(ModelError, match="no bfloat16"):
        _ = gallery.encoder
    assert make_model(tmp_path / "same", classes=CLASSES).fingerprint == model.fingerprint


def test_mistakes_are_named(monkeypatch, tmp_path):
    model = make_model(tmp_path / "model", classes=CLASSES)
    with pytest.raises(InputError, match="no runtime is called 'tensorrt'"):
        kedge.Encoder(model, runtime="tensorrt")
    with pytest.raises(ModelError, match="kedge quantize"):
        kedge.Gallery.create(tmp_path / "gallery", model, precision="int8")
    with pytest.raises(ModelError, match="no precision is called 'float8'"):
        kedge.Gallery.create(tmp_path / "gallery", model, precision="float8")
    assert not (tmp_path / "gallery").exists()
    (model.folder / "encoder.onnx").write_bytes(b"no graph")
    for name in ("onnxruntime", "openvino"):
        with pytest.raises(ModelError) as refused:
            kedge.Encoder(model, runtime=name)
        assert "cannot be run (" in str(refused.value)
        assert ".cpp" not in str(refused.value)
    monkeypatch.setitem(__import__("sys").modules, "openvino", None)
    with pytest.raises(MissingPartError, match=r"kedge\[openvino\]"):
        kedge.Encoder(model, runtime="openvino")


def test_openvino_sends_no_telemetry(tmp_path):
    """Its own import sends a message from a forked process; ours must not fork, nor leave a trace for others."""
    model = make_model(tmp_path / "model", classes=CLASSES)
    program = f"""
import os, sys, kedge
forked = []
os.register_at_fork(before=lambda: forked.append(1))
kedge.Encoder({str(model.folder)!r}, runtime="openvino")
assert "openvino" in sys.modules and "openvino_telemetry" not in sys.modules
print(len(forked))
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "0\n"


def test_ctrl_c_is_heard_after_an_encoder_was_let_go_in_another_thread(tmp_path):
    model = make_model(tmp_path / "model", classes=CLASSES)
    program = f"""
import gc, signal, threading, kedge
signal.signal(signal.SIGINT, signal.default_int_handler)  # tests that run in the background inherit it ignored
encoders = [kedge.Encoder({str(model.folder)!r}, runtime="openvino", threads=1)]
thread = threading.Thread(target=lambda: (encoders.clear(), gc.collect()))
thread.start()
thread.join()
try:
    signal.raise_signal(signal.SIGINT)
except KeyboardInterrupt:
    print("heard")
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "heard\n"), done.stderr
