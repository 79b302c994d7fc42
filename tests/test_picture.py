"""Pictures are read rightly, or refused with their path and reason."""

import io
import os
import pickle
import struct
import threading
import warnings
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageFilter

from kedge.errors import PictureError
from kedge.picture import (
    FORMATS,
    SUFFIXES,
    content_hash,
    find_pictures,
    perceptual_hash,
    read_picture,
    square,
    thumbnail,
)
from tests.pictures import draw


def shape(size=64, seed=0, kind=0):
    return draw(kind, size, np.random.default_rng(seed))


def saved(image, path, **options):
    image.save(path, **options)
    return path


def encoded(image, kind, **options):
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def gradient(width, height):
    """A smooth picture that no turn or mirror leaves as it was."""
    x, y = np.meshgrid(np.linspace(0, 1, width), np.linspace(0, 1, height))
    channels = np.stack([255 * x, 255 * y**2, 128 + 100 * np.sin(5 * x + 3 * y)], axis=2)
    return Image.fromarray(channels.round().astype(np.uint8))


def reason(source, **options):
    with warnings.catch_warnings(), pytest.raises(PictureError) as found:
        warnings.simplefilter("error")
        read_picture(source, **options)
    assert str(found.value) == f"{found.value.path}: {found.value.reason}"
    return found.value.reason


def pixel(path, place=(0, 0)):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return read_picture(path).image.getpixel(place)


def bomb(width, height):
    """A PNG of a few bytes whose header claims width x height pixels."""

    def chunk(name, data):
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


def test_what_cannot_be_read_is_named_with_its_reason(tmp_path):
    whole = saved(shape(), tmp_path / "whole.jpg").read_bytes()
    (tmp_path / "cut.jpg").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "empty.jpg").write_bytes(b"")
    (tmp_path / "text.jpg").write_text("no picture")
    (tmp_path / "bomb.png").write_bytes(bomb(30_000, 30_000))
    (tmp_path / "torn.png").write_bytes(bomb(8, 8))
    assert "broken" in reason(tmp_path / "cut.jpg")
    assert reason(tmp_path / "empty.jpg") == "the file is empty"
    assert "not a picture" in reason(tmp_path / "text.jpg")
    assert "150,000,000 pixels" in reason(tmp_path / "bomb.png")
    assert "broken" in reason(tmp_path / "torn.png")
    assert reason(tmp_path / "none.jpg") == "no such file"
    assert "folder" in reason(tmp_path)
    assert "not a picture" in reason(b"no picture", name="upload")


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "GIF", "WEBP", "BMP", "TIFF"])
def test_half_a_file_is_broken(kind):
    noise = np.random.default_rng(0).integers(0, 256, (40, 40, 3), dtype=np.uint8)
    data = encoded(Image.fromarray(noise), kind)
    assert read_picture(data).width == 40
    assert reason(data[: len(data) // 2], name="camera").startswith("broken: ")


@settings(max_examples=150, deadline=None)
@given(
    kind=st.sampled_from(["PNG", "JPEG", "GIF", "WEBP", "BMP", "TIFF", "PPM"]),
    changes=st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 255)), max_size=6),
    kept=st.floats(0.1, 1),
)
def test_damaged_files_are_read_or_refused_and_nothing_else(kind, changes, kept):
    turned = Image.Exif()
    turned[0x0112] = 6
    options = {"exif": turned} if kind in ("PNG", "JPEG", "WEBP") else {}
    data = bytearray(encoded(gradient(12, 9), kind, **options))
    for place, value in changes:
        data[int(place * len(data))] = value
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        try:
            picture = read_picture(bytes(data[: int(kept * len(data))]))
        except PictureError as error:
            assert error.reason
        else:
            assert square(picture.image, 4).shape == (4, 4, 3)


def test_limits_hold_where_pillow_has_none_or_only_warns(tmp_path, monkeypatch):
    data = encoded(gradient(10, 10), "PNG")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 60)  # Pillow warns from here, and raises at twice that
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert read_picture(data).width == 10
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)
    monkeypatch.setattr("kedge.picture.MOST_PIXELS", 99)
    assert "99 pixels" in reason(data)
    monkeypatch.setattr("kedge.picture.MOST_BYTES", 1 << 20)
    with (tmp_path / "huge.png").open("wb") as file:
        file.truncate((1 << 20) + 1)
    assert reason(tmp_path / "huge.png") == "the file is larger than 1 MiB"


def test_places_that_hold_no_file(tmp_path, monkeypatch):
    (tmp_path / "loop.png").symlink_to("loop.png")
    (tmp_path / "gone.png").symlink_to("nowhere.png")
    os.mkfifo(tmp_path / "pipe.png")
    assert "symbolic links" in reason(tmp_path / "loop.png")
    assert reason(tmp_path / "gone.png") == "no such file"
    assert reason(tmp_path / "pipe.png") == "not a regular file"
    assert "null" in reason(tmp_path / "a\0.png")
    saved(shape(), tmp_path / "locked.png")

    def refuse(_):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "read_bytes", refuse)  # not by chmod: root may read everything
    assert reason(tmp_path / "locked.png") == "Permission denied"


def test_reading_in_threads_leaves_the_warning_filters_as_they_were():
    data = encoded(gradient(64, 64), "JPEG")
    before = list(warnings.filters)

    def read():
        for _ in range(50):
            read_picture(data)

    threads = [threading.Thread(target=read) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert list(warnings.filters) == before


def test_errors_travel_between_processes():
    error = pickle.loads(pickle.dumps(PictureError("a.png", "broken")))
    assert (error.path, error.reason, str(error)) == ("a.png", "broken", "a.png: broken")


def test_one_pixel_is_a_picture(tmp_path):
    picture = read_picture(saved(Image.new("RGB", (1, 1), (9, 8, 7)), tmp_path / "one.png"))
    assert (picture.width, picture.height) == (1, 1)
    assert square(picture.image, 4).tolist() == [[[9, 8, 7]] * 4] * 4


def test_cmyk_grey_and_palette(tmp_path):
    assert pixel(saved(Image.new("CMYK", (4, 4), (0, 255, 255, 0)), tmp_path / "cmyk.jpg"))[0] > 200
    assert pixel(saved(Image.new("L", (4, 4), 77), tmp_path / "grey.png")) == (77, 77, 77)
    palette = Image.new("RGB", (4, 4), (10, 200, 30)).convert("P", palette=Image.Palette.ADAPTIVE)
    assert pixel(saved(palette, tmp_path / "palette.png")) == (10, 200, 30)


def test_what_is_transparent_shows_white(tmp_path):
    clear = Image.new("RGBA", (4, 4), (0, 0, 0, 0))
    clear.putpixel((1, 1), (255, 0, 0, 255))
    path = saved(clear, tmp_path / "clear.png")
    assert pixel(path) == (255, 255, 255)
    assert pixel(path, (1, 1)) == (255, 0, 0)
    half = saved(Image.new("LA", (1, 1), (0, 128)), tmp_path / "half.png")
    assert pixel(half) == pytest.approx((127, 127, 127), abs=1)
    palette = Image.new("P", (2, 1))
    palette.putpalette([255, 0, 0, 0, 0, 255])
    palette.putdata([0, 1])
    for transparency in (0, bytes([0, 255])):
        path = saved(palette, tmp_path / "hole.png", transparency=transparency)
        assert (pixel(path), pixel(path, (1, 0))) == ((255, 255, 255), (0, 0, 255))


def test_sixteen_bits_are_scaled_not_clipped(tmp_path):
    ramp = np.array([[0, 0x4000, 0x8000, 0xFFFF]], dtype=np.uint16)
    path = saved(Image.fromarray(ramp), tmp_path / "deep.png")
    values = [read_picture(path).image.getpixel((column, 0))[0] for column in range(4)]
    assert values == pytest.approx([0, 64, 128, 255], abs=1)


def test_sixteen_bits_in_the_other_byte_order():
    data = b"P5 2 1 65535\n" + struct.pack(">2H", 257 * 3, 257 * 200)
    assert np.asarray(read_picture(data).image)[0, :, 0].tolist() == [3, 200]


def test_floats_are_scaled_and_what_is_not_finite_is_black():
    values = np.array([[0.0, 0.5, 1.0, np.nan, -3.0, np.inf]], dtype=np.float32)
    found = np.asarray(read_picture(encoded(Image.fromarray(values), "TIFF")).image)
    assert found[0, :, 0].tolist() == [0, 128, 255, 0, 0, 0]


@pytest.mark.parametrize("mode", ["1", "L", "YCbCr", "LAB"])
def test_white_is_white_in_every_mode(mode):
    white = (
        Image.new("LAB", (5, 3), (255, 128, 128)) if mode == "LAB" else Image.new("RGB", (5, 3), "white").convert(mode)
    )
    found = read_picture(encoded(white, "TIFF")).image
    assert found.mode == "RGB"
    assert np.asarray(found).min() >= 250


def test_first_frame_of_an_animation(tmp_path):
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue")]
    path = saved(frames[0], tmp_path / "moving.gif", save_all=True, append_images=frames[1:])
    assert pixel(path) == pytest.approx((255, 0, 0), abs=3)


@pytest.mark.parametrize("turn", range(1, 9))
def test_exif_turned_pictures_stand_upright(turn, tmp_path):
    upright = Image.new("RGB", (64, 32), "black")
    upright.paste((255, 255, 255), (0, 0, 32, 16))  # the upper left quarter
    back = {2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}  # the transposition that its viewer undoes
    stored = upright.transpose(Image.Transpose(back[turn])) if turn > 1 else upright
    exif = Image.Exif()
    exif[0x0112] = turn
    picture = read_picture(saved(stored, tmp_path / "turned.png", exif=exif))
    assert (picture.width, picture.height) == picture.image.size == (64, 32)
    assert picture.image.getpixel((8, 4)) == (255, 255, 255)
    assert picture.image.getpixel((56, 28)) == (0, 0, 0)


def test_content_hash_is_of_the_bytes_and_a_path_equals_its_bytes(tmp_path):
    path = saved(shape(), tmp_path / "a.png")
    data = path.read_bytes()
    read = read_picture(path)
    assert read.content_hash == read_picture(data, name="b").content_hash == content_hash(data)
    assert content_hash(b"") == "e3b0c44298fc1c149afbf4c8996fb924"
    assert np.array_equal(np.asarray(read.image), np.asarray(read_picture(data).image))


def test_reduced_decoding_keeps_the_whole_size_and_nearly_the_same_square(tmp_path):
    large = shape(64).resize((1600, 1200), Image.Resampling.BICUBIC)
    path = saved(large, tmp_path / "large.jpg", quality=95)
    whole, reduced = read_picture(path), read_picture(path, at_least=64)
    assert reduced.image.size == (200, 150)
    assert min(read_picture(path, at_least=151).image.size) == 300
    assert (reduced.width, reduced.height) == (1600, 1200)
    difference = square(whole.image, 64).astype(int) - square(reduced.image, 64)
    assert np.abs(difference).mean() < 1.5


def test_square_is_the_middle():
    image = Image.new("RGB", (30, 10), "black")
    image.paste((255, 255, 255), (10, 0, 20, 10))
    assert (square(image, 10) == 255).all()
    assert np.array_equal(square(image.transpose(Image.Transpose.ROTATE_90), 10), square(image, 10))


@pytest.mark.parametrize(("width", "height", "left", "top"), [(9, 5, 2, 0), (4, 8, 0, 2), (6, 6, 0, 0)])
def test_square_of_the_shorter_side_is_a_plain_cut(width, height, left, top):
    image, side = gradient(width, height), min(width, height)
    assert np.array_equal(square(image, side), np.asarray(image)[top : top + side, left : left + side])


def test_square_weighs_pixels_by_the_cubic_kernel_stretched():
    def kernel(x):  # Keys' cubic, a = -1/2
        x = abs(x)
        inner, outer = 1.5 * x**3 - 2.5 * x**2 + 1, -0.5 * x**3 + 2.5 * x**2 - 4 * x + 2
        return inner if x < 1 else outer if x < 2 else 0.0

    row = np.array([0, 0, 0, 255, 255, 0, 0, 0, 40, 90, 200, 10], dtype=np.uint8)
    expected = []
    for centre in range(1, 12, 2):  # halved: each new pixel lies between two old ones
        weights = np.array([kernel((place + 0.5 - centre) / 2) for place in range(12)])
        expected.append(np.clip((weights * row).sum() / weights.sum(), 0, 255))
    image = Image.fromarray(np.broadcast_to(row[None, :, None], (12, 12, 3)).copy())
    assert np.abs(square(image, 6)[3, :, 0] - np.array(expected)).max() <= 1


@settings(max_examples=25, deadline=None)
@given(scale=st.integers(1, 6), longer=st.integers(0, 5), size=st.integers(2, 24), upright=st.booleans())
def test_square_equals_torchvisions_antialiased_resize_and_middle(scale, longer, size, upright):
    functional = pytest.importorskip("torchvision.transforms.v2.functional")
    # The longer side too is a whole multiple, even pixels more, so that both cut out the same place.
    width, height = scale * size, scale * (size + 2 * longer)
    image = gradient(*((width, height) if upright else (height, width)))
    bicubic = functional.InterpolationMode.BICUBIC
    theirs = functional.resize(functional.pil_to_tensor(image), [size], bicubic, antialias=True)
    theirs = functional.center_crop(theirs, [size, size]).permute(1, 2, 0).numpy()
    assert np.abs(square(image, size).astype(int) - theirs).max() <= 1


@given(width=st.integers(1, 40), height=st.integers(1, 40), size=st.integers(1, 24))
def test_square_is_square_whatever_the_picture(width, height, size):
    found = square(Image.new("RGB", (width, height), (1, 2, 3)), size)
    assert (found.shape, found.dtype) == ((size, size, 3), np.uint8)
    assert (found == [1, 2, 3]).all()


def test_thumbnail_is_a_small_jpeg_and_never_enlarged():
    for size, expected in (((1000, 500), (256, 128)), ((40, 20), (40, 20))):
        with Image.open(io.BytesIO(thumbnail(Image.new("RGB", size)))) as small:
            assert (small.format, small.size) == ("JPEG", expected)


def test_perceptual_hash_worked_by_hand():
    falling = np.tile(np.arange(250, 70, -20, dtype=np.uint8), (8, 1))  # (8, 9), each brighter than the next
    assert perceptual_hash(Image.fromarray(falling)) == -1  # all 64 bits
    assert perceptual_hash(Image.fromarray(falling[:, ::-1].copy())) == 0
    last = np.zeros((8, 9), dtype=np.uint8)
    last[7, 7] = 255
    assert perceptual_hash(Image.fromarray(last)) == 1


def test_perceptual_hash_survives_scaling_and_tells_pictures_apart():
    def far(one, other):
        return ((one ^ other) & (2**64 - 1)).bit_count()

    pictures = [shape(96, seed, seed).filter(ImageFilter.GaussianBlur(3)) for seed in range(6)]
    hashes = [perceptual_hash(picture) for picture in pictures]
    assert all(-(2**63) <= value < 2**63 for value in hashes)
    for picture, value in zip(pictures, hashes, strict=True):
        again = perceptual_hash(picture.resize((300, 300), Image.Resampling.BICUBIC))
        assert far(value, again) <= 6
        assert all(far(value, other) > 8 for other in hashes if other != value)


def test_find_pictures_is_sorted_and_safe(tmp_path):
    for name in ("b.png", "a.JPG", "sub/c.webp", "notes.txt", ".hidden.png", ".git/d.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "sub" / "loop").symlink_to(tmp_path)
    odd = os.fsencode(tmp_path) + b"/\xff\xfe.png"
    Path(os.fsdecode(odd)).touch()
    found = [os.fsencode(path.relative_to(tmp_path)) for path in find_pictures(tmp_path)]
    assert found == [b"a.JPG", b"b.png", b"sub/c.webp", b"\xff\xfe.png"]
    assert list(find_pictures(tmp_path / "none")) == []


def test_a_folder_that_cannot_be_read_is_told(tmp_path, monkeypatch):
    for name in ("open", "shut"):
        (tmp_path / name).mkdir()
        draw(0, 8, np.random.default_rng(0)).save(tmp_path / name / "x.png")
    listed = os.scandir

    def refuse(path):  # not by chmod: root may read everything
        if Path(path).name == "shut":
            raise PermissionError(13, "Permission denied", str(path))
        return listed(path)

    monkeypatch.setattr(os, "scandir", refuse)
    found = list(find_pictures(tmp_path))
    assert found == [tmp_path / "open" / "x.png", tmp_path / "shut"]
    with pytest.raises(PictureError, match=r"shut: Permission denied"):
        read_picture(found[1])


def test_linked_folders_are_entered_once(tmp_path):
    root, elsewhere = tmp_path / "root", tmp_path / "elsewhere"
    (root / "deep").mkdir(parents=True)
    elsewhere.mkdir()
    (elsewhere / "x.png").touch()
    (root / "deep" / "up").symlink_to(root)
    (root / "itself").symlink_to("itself")
    (root / "one").symlink_to(elsewhere)
    (root / "two").symlink_to(elsewhere)
    (root / "z.png").symlink_to(elsewhere / "x.png")
    assert [str(path.relative_to(root)) for path in find_pictures(root)] == ["one/x.png", "z.png"]


def test_every_suffix_is_one_that_is_read_and_no_other_format_is():
    """Pillow gives EPS to Ghostscript, whatever its file is called."""
    Image.init()
    of_suffix = Image.registered_extensions()
    assert {of_suffix[suffix] for suffix in SUFFIXES} <= set(FORMATS)
    script = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\nshowpage\n%%EOF\n"
    with Image.open(io.BytesIO(script)) as opened:
        assert opened.format == "EPS"
    with pytest.raises(PictureError, match="not a picture that can be read"):
        read_picture(script)
