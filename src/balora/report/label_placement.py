"""Direct labels beside marks, placed so that they cover neither each other nor any mark."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.path import Path
from matplotlib.transforms import Bbox

_ANGLES = (0, 90, 270, 180, 45, 315, 135, 225, 20, 340, 160, 200)  # degrees; the earlier, the rather
_DISTANCES = (10, 17, 26, 38, 52, 70, 95, 125, 160)  # points from the mark's centre to the label's nearest edge
_JOINED_FROM = 26  # points; nearer labels need no line to their mark
_MARK_RADIUS = 6  # points kept free around every mark
_APART = 2  # points between two labels
_UNREADABLE = 10  # how much worse than over a mark a label lies over another one, or outside


@dataclass(frozen=True)
class Label:
    """A text in a colour for the mark at (x, y), in data coordinates."""

    text: str
    x: float
    y: float
    colour: str | tuple[float, float, float]


@dataclass(frozen=True)
class _Spot:
    """A place for a label, in pixels, and the line that would join it to its mark."""

    box: Bbox
    leader: Path
    distance: float


def place_labels(axes: Axes, labels: Sequence[Label], marks: np.ndarray) -> None:
    """Write each text beside its mark, near it where there is room and joined to it by a thin line where not.

    A greedy search over a few directions and distances: with more labels than fit, the least crowded spot is taken.

    Args:
        axes: Axes whose limits and layout are final.
        labels: What to write, the most important first.
        marks: Every drawn mark, in data coordinates. # (N, 2)
    """
    pixels_per_point = axes.figure.dpi / 72
    inside = axes.get_window_extent()
    centres = axes.transData.transform(marks)
    taken = [Bbox([centre, centre]).padded(_MARK_RADIUS * pixels_per_point) for centre in centres]
    written: list[Bbox] = []

    for label in labels:
        # A `$` in a method's name is a dollar sign, not the start of a formula.
        note = axes.annotate(
            label.text,
            (label.x, label.y),
            xytext=(0, 0),
            textcoords="offset points",
            ha="center",
            va="center",
            color=label.colour,
            annotation_clip=False,
            parse_math=False,
        )
        size = note.get_window_extent()
        centre = axes.transData.transform((label.x, label.y))
        spots = [
            _spot(centre, np.array([size.width, size.height]), angle, distance, pixels_per_point)
            for distance in _DISTANCES
            for angle in _ANGLES
        ]
        best = min(spots, key=lambda spot: _crowding(spot, taken, written, inside))
        written.append(best.box.padded(_APART * pixels_per_point))
        note.set_position((best.box.get_points().mean(axis=0) - centre) / pixels_per_point)
        if best.distance >= _JOINED_FROM:
            line = axes.transData.inverted().transform(best.leader.vertices)
            axes.plot(*line.T, color=label.colour, linewidth=0.7, zorder=1, scalex=False, scaley=False)


def _spot(centre: np.ndarray, size: np.ndarray, angle: float, distance: float, pixels_per_point: float) -> _Spot:
    direction = np.array([np.cos(np.radians(angle)), np.sin(np.radians(angle))])
    near = centre + direction * distance * pixels_per_point
    # The label hangs off `near` by its edge or corner: fully to the side for level directions, above for steep ones.
    middle = near + np.clip(direction * 1.5, -1, 1) * size / 2
    return _Spot(Bbox([middle - size / 2, middle + size / 2]), Path([centre, near]), distance)


def _crowding(spot: _Spot, taken: Sequence[Bbox], written: Sequence[Bbox], inside: Bbox) -> float:
    """How bad the spot is, in square pixels: what its label covers or has outside, and labels its line strikes out."""
    area = spot.box.width * spot.box.height
    outside = area - _overlap(spot.box, inside)
    covered = sum(_overlap(spot.box, other) for other in taken)
    struck = sum(area for other in written if spot.leader.intersects_bbox(other))
    return covered + struck + _UNREADABLE * (outside + sum(_overlap(spot.box, other) for other in written))


def _overlap(box: Bbox, other: Bbox) -> float:
    shared = Bbox.intersection(box, other)
    return 0.0 if shared is None else shared.width * shared.height
