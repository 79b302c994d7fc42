"""Augmentation: random views of a batch of pictures, worked out on the device that trains."""

from dataclasses import dataclass

import torch
from scipy.stats import beta
from torch import Tensor
from torch.nn import functional as F

__all__ = ["Augmentation", "mixed_up"]

# From this size on pictures hold enough detail to be seen at random scales.
SCALED_FROM = 96
LEAST_SCALE = 0.6


@dataclass(frozen=True)
class Augmentation:
    """How a training view is drawn from a picture.

    view_size: side of the view in pixels, at most the picture's; a view as large as the picture is shifted within a
    margin. flip: mirror half of the pictures left-right. brightness: b draws a factor from 1 - b to 1 + b.
    """

    view_size: int
    flip: bool
    brightness: float

    def __call__(self, pictures: Tensor, generator: torch.Generator) -> Tensor:
        """Return views (n, v, v, 3) float32 in 0..255 of pictures (n, s, s, 3) uint8."""
        # Autocast would round the places in a picture to 8 bits.
        with torch.autocast(pictures.device.type, enabled=False):
            if pictures.shape[1] >= SCALED_FROM:
                views = self._scaled(pictures, generator)
            else:
                views = self._cropped(pictures, generator).float()
        low, high = 1.0 - self.brightness, 1.0 + self.brightness
        factors = torch.empty(len(views), 1, 1, 1, device=views.device).uniform_(low, high, generator=generator)
        return (views * factors).clamp(0.0, 255.0)

    def _cropped(self, pictures: Tensor, generator: torch.Generator) -> Tensor:
        """Cut a square at random, by one gather for the whole batch."""
        view = self.view_size
        if view == pictures.shape[1]:
            margin = view // 8
            channels_first = pictures.permute(0, 3, 1, 2).float()
            pictures = F.pad(channels_first, (margin,) * 4, mode="reflect").permute(0, 2, 3, 1)
        count, room = len(pictures), pictures.shape[1] - view + 1
        device = pictures.device
        offsets = torch.randint(0, room, (2, count, 1), generator=generator, device=device)
        steps = torch.arange(view, device=device).expand(count, view)
        mirrored = self._mirrored(count, generator, device)[:, None]
        columns = torch.where(mirrored, view - 1 - steps, steps) + offsets[1]
        rows = steps + offsets[0]
        return pictures[torch.arange(count, device=device)[:, None, None], rows[:, :, None], columns[:, None, :]]

    def _scaled(self, pictures: Tensor, generator: torch.Generator) -> Tensor:
        """Cut a square of random size and place, and resize it to the view, for the whole batch in one sampling."""
        count, device = len(pictures), pictures.device
        scale = torch.empty(count, device=device).uniform_(LEAST_SCALE, 1.0, generator=generator)
        shift = torch.empty(2, count, device=device).uniform_(-1.0, 1.0, generator=generator) * (1.0 - scale)
        signs = 1.0 - 2.0 * self._mirrored(count, generator, device).float()
        zero = torch.zeros_like(scale)
        across = torch.stack([scale * signs, zero, shift[0]], dim=1)
        down = torch.stack([zero, scale, shift[1]], dim=1)
        shape = [count, 3, self.view_size, self.view_size]
        grid = F.affine_grid(torch.stack([across, down], dim=1), shape, align_corners=False)
        channels_first = pictures.permute(0, 3, 1, 2).float()
        views = F.grid_sample(channels_first, grid, mode="bilinear", padding_mode="reflection", align_corners=False)
        return views.permute(0, 2, 3, 1)

    def _mirrored(self, count: int, generator: torch.Generator, device: torch.device) -> Tensor:
        if not self.flip:
            return torch.zeros(count, dtype=torch.bool, device=device)
        return torch.rand(count, generator=generator, device=device) < 0.5


def mixed_up(
    views: Tensor, labels: Tensor, alpha: float, generator: torch.Generator
) -> tuple[Tensor, list[tuple[float, Tensor]]]:
    """Return each view blended with another of its batch, and what the blends show: (share, labels) twice.

    The share is drawn from Beta(alpha, alpha), one for the batch (mixup, arXiv:1710.09412).
    """
    drawn = torch.rand((), generator=generator, device=views.device)
    share = float(beta.ppf(float(drawn), alpha, alpha))
    partners = torch.randperm(len(views), generator=generator, device=views.device)
    blended = share * views + (1.0 - share) * views[partners]
    return blended, [(share, labels), (1.0 - share, labels[partners])]
