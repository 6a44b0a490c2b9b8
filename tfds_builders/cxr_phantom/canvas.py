"""Drawing patient-frame curves into pixel planes, the same shape at every image size."""

import functools

import cv2
import numpy as np

from tfds_builders.cxr_phantom.anatomy import Pose, ribbon, stream

_SHIFT = 5  # OpenCV polygon coordinates are fixed point with this many fractional bits


class Canvas:
    """Square uint8 planes of `size` pixels seen through a pose (zoom, rotation, shift)."""

    def __init__(self, size: int, pose: Pose):
        self.size = size
        angle = np.deg2rad(pose.angle)
        c, s = np.cos(angle) * pose.zoom, np.sin(angle) * pose.zoom
        self._linear = np.array([[c, -s], [s, c]])
        self._offset = np.array([0.5, 0.5]) + pose.shift
        self.zoom = pose.zoom
        self._frames: dict[tuple[float, float], tuple[np.ndarray, np.ndarray]] = {}

    def film(self, points, scale: float = 1.0, start: float = 0.0) -> np.ndarray:
        """Patient frame [..., 2] to film coordinates (x to the right, y down): 0..1 times `scale` plus `start`."""
        points = np.asarray(points, np.float64)
        turn, offset = self._frames.get((scale, start)) or self._frame(scale, start)
        out = np.dot(points.reshape(-1, 2), turn)  # one product of all points; of planes of them it is slower
        out += offset
        return out.reshape(points.shape)

    def _frame(self, scale: float, start: float) -> tuple[np.ndarray, np.ndarray]:
        """What `film` multiplies by and adds, kept for the next curve."""
        offset = scale * (self._offset - 0.5 * self._linear[:, 1]) + start
        self._frames[scale, start] = np.ascontiguousarray(scale * self._linear.T), offset
        return self._frames[scale, start]

    def fixed(self, points, size: int | None = None) -> np.ndarray:
        """Patient frame [..., 2] to OpenCV's fixed-point pixels, int32; pixel centres are whole numbers."""
        one = 1 << _SHIFT
        pixels = self.film(points, (size or self.size) * one, -0.5 * one)
        return np.rint(pixels, out=pixels).astype(np.int32)

    def fill(self, plane: np.ndarray, points, level: int = 255) -> np.ndarray:
        """Draws a filled, antialiased polygon into the plane, in place."""
        cv2.fillPoly(plane, [self.fixed(points, plane.shape[0])], int(level), cv2.LINE_AA, _SHIFT)
        return plane

    def fill_many(self, plane: np.ndarray, outlines, level: int) -> np.ndarray:
        """Draws polygons [P, N, 2] one after the other; later ones overwrite."""
        return self.fill_fixed(plane, self.fixed(outlines, plane.shape[0]), level)

    def fill_fixed(self, plane: np.ndarray, outlines, level: int) -> np.ndarray:
        """`fill_many` of what `fixed` gives."""
        for outline in outlines:
            cv2.fillPoly(plane, [outline], int(level), cv2.LINE_AA, _SHIFT)
        return plane

    def lines(self, plane: np.ndarray, paths, widths, levels, *, closed: bool = False) -> np.ndarray:
        """Draws paths [P, N, 2], each `widths[p]` patient-frame units wide.

        Thinner than a pixel, a line gets fainter instead of wider, so that it carries the same weight at every size.
        """
        pixels = np.asarray(widths, np.float64) * (plane.shape[0] * self.zoom)
        thickness = np.maximum(1, np.rint(pixels))
        level = np.asarray(levels) * np.minimum(1.0, pixels / thickness)
        style = thickness.astype(int) * 256 + np.minimum(255, 16 * np.rint(level / 16)).astype(int)
        fixed = self.fixed(paths, plane.shape[0])
        for value in sorted(set(style.tolist())):  # one call per style; thicker and brighter ones on top
            cv2.polylines(plane, list(fixed[style == value]), closed, value % 256, value // 256, cv2.LINE_AA, _SHIFT)
        return plane

    def line(self, plane: np.ndarray, path, width: float, level: float = 255, *, closed: bool = False) -> np.ndarray:
        return self.lines(plane, np.asarray(path)[None], [width], [level], closed=closed)

    def band(self, plane: np.ndarray, path, half_width, level: int = 255) -> np.ndarray:
        return self.fill(plane, ribbon(np.asarray(path, np.float64), half_width), level)

    def plane(self, size: int | None = None) -> np.ndarray:
        return np.zeros((size or self.size,) * 2, np.uint8)

    def mask(self, *outlines) -> np.ndarray:
        """Union of polygons as uint8 0/255."""
        plane = self.plane()
        for outline in outlines:
            self.fill(plane, outline)
        return plane

    def soft(self, *outlines, blur: float, levels=None) -> np.ndarray:
        """Polygons with a penumbra of `blur` patient-frame units (a standard deviation), float32 in 0..1.

        Wide penumbras are drawn small and enlarged: they hold no detail, and this is several times faster.
        """
        sigma = blur * self.size * self.zoom
        factor = 1
        while sigma / factor > 1.6 and self.size // (factor * 2) >= 16 and self.size % (factor * 2) == 0:
            factor *= 2
        small = self.plane(self.size // factor)
        for outline, level in zip(outlines, levels or [255] * len(outlines), strict=True):
            self.fill(small, outline, level)
        return self.enlarge(soften(small, sigma / factor))

    def enlarge(self, plane: np.ndarray) -> np.ndarray:
        """uint8 or float plane of any size to float32 0..1 (uint8) or unchanged range (float) at full size."""
        plane = plane.astype(np.float32) * (1 / 255) if plane.dtype == np.uint8 else plane
        if plane.shape[0] != self.size:
            plane = cv2.resize(plane, (self.size, self.size), interpolation=cv2.INTER_LINEAR)
        return plane

    def clouds(self, rng: np.random.Generator, *scales: tuple[int, float]) -> np.ndarray:
        """Smooth random field, float32 at full size: the sum of (cells across the film, standard deviation)."""
        grid = None
        for cells, deviation in scales:  # from coarse to fine
            fresh = rng.standard_normal((cells, cells), dtype=np.float32) * (1.35 * deviation)
            grid = fresh if grid is None else fresh + cv2.resize(grid, (cells, cells), interpolation=cv2.INTER_CUBIC)
        return cv2.resize(grid, (self.size, self.size), interpolation=cv2.INTER_CUBIC)


@functools.lru_cache(maxsize=4)
def _grain_tile(side: int, sigma: float) -> np.ndarray:
    return soften(stream(side, 0x6E01).standard_normal((side, side), dtype=np.float32), sigma)


def grain(rng: np.random.Generator, size: int) -> np.ndarray:
    """Film grain, float32 [size, size] with about unit variance: a random window of one large tile per image size."""
    side = max(1024, 2 * size)
    row, column = rng.integers(0, side - size, 2)
    return _grain_tile(side, 0.55 * size / 256)[row : row + size, column : column + size]


def soften(plane: np.ndarray, sigma: float) -> np.ndarray:
    """Gaussian blur by `sigma` pixels; planes stay in their dtype."""
    if sigma < 0.25:
        return plane
    return cv2.GaussianBlur(plane, (0, 0), sigma, borderType=cv2.BORDER_REPLICATE)
