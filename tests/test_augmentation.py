"""Views are cuts of their own picture, drawn anew for each, the same for the same seed."""

import pytest
import torch

from kedge.augmentation import Augmentation, mixed_up


def numbered(size, count=6):
    """Pictures in which red and green say the column and the row, and blue the picture."""
    steps = torch.arange(size, dtype=torch.uint8)
    planes = [steps.expand(size, size), steps[:, None].expand(size, size)]
    return torch.stack(
        [torch.stack([*planes, torch.full((size, size), 10 * row, dtype=torch.uint8)], dim=2) for row in range(count)]
    )


def draw(augmentation, pictures, seed=0):
    return augmentation(pictures, torch.Generator().manual_seed(seed))


def test_cut_is_a_window_of_its_own_picture():
    augmentation = Augmentation(view_size=56, flip=False, brightness=0.0)
    views = draw(augmentation, numbered(64))
    assert views.shape == (6, 56, 56, 3)
    for row, view in enumerate(views):
        assert (view[..., 2] == 10 * row).all()
        assert (view[0, 1:, 0] - view[0, :-1, 0] == 1).all()
        assert (view[1:, 0, 1] - view[:-1, 0, 1] == 1).all()


def test_scaled_cut_is_a_window_of_its_own_picture():
    augmentation = Augmentation(view_size=112, flip=False, brightness=0.0)
    for row, view in enumerate(draw(augmentation, numbered(128))):
        assert torch.allclose(view[..., 2], torch.tensor(10.0 * row))
        # Beyond its edge a picture goes back the way it came.
        assert (view[..., 0].diff(dim=1) > 0).all()
        assert (view[..., 1].diff(dim=0) > 0).all()


@pytest.mark.parametrize("size", [64, 128])
def test_autocast_leaves_views_as_they_are(size):
    augmentation, pictures = Augmentation(view_size=size * 7 // 8, flip=True, brightness=0.4), numbered(size)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        views = draw(augmentation, pictures)
    assert torch.equal(views, draw(augmentation, pictures))


def test_half_are_mirrored():
    augmentation = Augmentation(view_size=56, flip=True, brightness=0.0)
    views = draw(augmentation, numbered(64, count=24))
    mirrored = (views[:, 0, 0, 0] > views[:, 0, -1, 0]).float().mean()
    assert 0.2 < mirrored < 0.8


@pytest.mark.parametrize("size", [32, 128])
def test_fixed_size_networks_get_whole_sized_views(size):
    augmentation = Augmentation(view_size=size, flip=True, brightness=0.4)
    views = draw(augmentation, numbered(size))
    assert views.shape == (6, size, size, 3)
    assert views.min() >= 0
    assert views.max() <= 255


def test_same_seed_same_views_and_another_seed_others():
    augmentation = Augmentation(view_size=112, flip=True, brightness=0.4)
    pictures = numbered(128)
    assert torch.equal(draw(augmentation, pictures), draw(augmentation, pictures))
    assert not torch.equal(draw(augmentation, pictures), draw(augmentation, pictures, seed=1))


def test_brightness_scales_a_picture_as_a_whole():
    augmentation = Augmentation(view_size=28, flip=False, brightness=0.4)
    views = draw(augmentation, torch.full((50, 32, 32, 3), 100, dtype=torch.uint8))
    assert views.amin() >= 60
    assert views.amax() <= 140
    assert torch.equal(views.amin(dim=(1, 2, 3)), views.amax(dim=(1, 2, 3)))
    assert len(views[:, 0, 0, 0].unique()) == 50


def test_mixed_views_are_blends_of_what_their_shares_say():
    pictures = numbered(32, count=12).float()
    blended, shown = mixed_up(pictures, torch.arange(12), 1.0, torch.Generator().manual_seed(0))
    (first, own), (second, others) = shown
    assert first + second == pytest.approx(1.0)
    assert 0.0 < first < 1.0
    assert torch.equal(own, torch.arange(12))
    assert torch.equal(others.sort().values, own)
    # Labels are row numbers here, and so say which picture was blended in.
    assert torch.allclose(blended, first * pictures + second * pictures[others])
