"""Pictures are read rightly, or refused with their path and reason."""

import io
import os
import struct
import warnings
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageFilter

from kedge.errors import PictureError
from kedge.picture import content_hash, find_pictures, perceptual_hash, read_picture, square, thumbnail
from tests.pictures import draw


def shape(size=64, seed=0, kind=0):
    return draw(kind, size, np.random.default_rng(seed))


def saved(image, path, **options):
    image.save(path, **options)
    return path


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
    palette = Image.new("P", (4, 4), 0)
    palette.putpalette([0, 0, 255] + [0] * 765)
    assert pixel(saved(palette, tmp_path / "hole.png", transparency=0)) == (255, 255, 255)


def test_sixteen_bits_are_scaled_not_clipped(tmp_path):
    ramp = np.array([[0, 0x4000, 0x8000, 0xFFFF]], dtype=np.uint16)
    path = saved(Image.fromarray(ramp), tmp_path / "deep.png")
    values = [read_picture(path).image.getpixel((column, 0))[0] for column in range(4)]
    assert values == pytest.approx([0, 64, 128, 255], abs=1)


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
    assert min(reduced.image.size) >= 128
    assert reduced.image.size < whole.image.size
    assert (reduced.width, reduced.height) == (1600, 1200)
    difference = square(whole.image, 64).astype(int) - square(reduced.image, 64)
    assert np.abs(difference).mean() < 1.5


def test_square_is_the_middle():
    image = Image.new("RGB", (30, 10), "black")
    image.paste((255, 255, 255), (10, 0, 20, 10))
    assert (square(image, 10) == 255).all()
    assert np.array_equal(square(image.transpose(Image.Transpose.ROTATE_90), 10), square(image, 10))


def test_square_is_near_torchvisions_antialiased_resize():
    from torchvision.transforms import v2

    image = shape(200).resize((240, 200))
    theirs = v2.Compose([v2.Resize(48, v2.InterpolationMode.BICUBIC, antialias=True), v2.CenterCrop(48)])(
        v2.functional.pil_to_tensor(image)
    )
    ours = square(image, 48).astype(int)
    assert np.abs(ours - theirs.permute(1, 2, 0).numpy()).mean() < 3.0
    nearest = np.asarray(image.resize((58, 48), Image.Resampling.NEAREST)).astype(int)[:, 5:53]
    assert np.abs(ours - nearest).mean() > 4.0  # what lies that near is no accident


def test_thumbnail_is_a_small_jpeg_and_never_enlarged():
    for size, expected in (((1000, 500), (256, 128)), ((40, 20), (40, 20))):
        with Image.open(io.BytesIO(thumbnail(Image.new("RGB", size)))) as small:
            assert (small.format, small.size) == ("JPEG", expected)


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
