"""Aligns the exposures of a bracket to its middle one: the camera's motion by a homography, or, for comparison, all motion by optical flow."""

from __future__ import annotations

import math
from dataclasses import dataclass

import cv2
import numpy as np

from bilagrid.commands import count

_LARGEST = 2400  # pixels of the longer side at which features are looked for
_FEATURES = 6000
_RATIO = 0.8  # of the nearest to the second nearest descriptor (Lowe)
_TOLERANCE = 2.0  # pixels
_MATCHES, _SHARE = 24, 0.25  # how many matches, and what share of them, must agree on a homography
_FARTHEST = 0.25  # of the diagonal, how far a corner may move
# The share of the difference that a motion may leave. A homography has matches to speak for it, and noise may hide what it gains; a translation has none.
_NO_WORSE, _BETTER = 1.05, 0.8
_STRONG = 0.1  # of white, beyond which all differences count alike
_STANDS = 0.25  # pixels: if half of the picture moves by no more it is left as it is, rather than blurred
_SMALLEST = 64  # pixels of the shorter side: after five halvings median thresholds still have something to compare
_AGREES = 0.7  # the correlation that makes a translation credible

_WHITE = 250  # of 255, above which a value says only that there is more light
_COUNTED = 2**18  # pixels from which `seen_as` learns how one exposure sees another

_SPACING = 8  # pixels from one tracked point to the next
_WINDOW, _LEVELS = 21, 4
_BACK = 1.0  # pixels by which a point may miss its origin when it is tracked back


@dataclass(frozen=True)
class Aligned:
    """A bracket whose exposures are aligned to its middle one.

    Args:
        ldr: ``(K, H, W, 3)`` float32 in [0, 1]. Where an exposure shows nothing, it holds what that would have made of the middle one.
        valid: ``(K, H, W)``, where each exposure shows the scene.
        notes: what was done, a line for each exposure.
    """

    ldr: np.ndarray
    valid: np.ndarray
    notes: tuple[str, ...]


def align(ldr: np.ndarray, ev: np.ndarray, middle: int, method: str = "homography") -> Aligned:
    """Aligns each exposure to the middle one.

    Args:
        ldr: ``(K, H, W, 3)`` in [0, 1], encoded by gamma.
        ev: ``(K,)``, their log2 exposures.
        middle: the one that stays as it is.
        method: homography: aligns the background, by SIFT features of pictures brought to one exposure, and MAGSAC; by a translation if too few features
            match; not at all if none is credible. What moves in the scene is left to the merge. flow: aligns every pixel, by Lucas and Kanade's pyramidal
            optical flow, which follows moving things until they are hidden or turn. none: aligns nothing.
    """
    pictures, valid, notes = [], [], []
    for i, picture in enumerate(ldr):
        if i == middle:
            place, note = None, "the middle"
        elif method == "homography":
            place, note = _background(picture, ldr[middle], ev[i] - ev[middle])
        elif method == "flow":
            place, note = flow(*_same_exposure(picture, ldr[middle], ev[i] - ev[middle])), "optical flow"
        elif method == "none":
            place, note = None, "left as it is"
        else:
            raise ValueError(f"method must be homography, flow or none, got {method!r}")
        shown = np.ones(picture.shape[:2], bool)
        if place is not None:
            picture, shown = warp(picture, place)
            picture = np.where(shown[..., None], picture, seen_as(ldr[middle], picture, shown))
        pictures.append(picture)
        valid.append(shown)
        notes.append(note)
    return Aligned(np.stack(pictures), np.stack(valid), tuple(notes))


def seen_as(reference: np.ndarray, picture: np.ndarray, valid: np.ndarray) -> np.ndarray:
    """The reference as the picture's exposure would have seen it: each value becomes the median of what the picture shows where the reference has that value.

    It needs no knowledge of the camera's response (Grossberg and Nayar's intensity mapping, 2003). The median is taken over all channels first, then for each
    channel over the half of the pixels that agree best, which stand still. Where the reference is white, the result is the least that the picture can show.
    """
    levels = np.rint(reference * 255).astype(np.uint8)
    step = max(math.isqrt(valid.size // _COUNTED), 1)
    sample = valid[::step, ::step]
    known, values = levels[::step, ::step][sample], picture[::step, ::step][sample]
    # White stands for anything brighter: its median would say nothing.
    told = (known <= _WHITE).all(-1)
    known, values = (known[told], values[told]) if told.any() else (known, values)
    if not len(known):
        return np.zeros_like(picture)
    curves = [_medians(known.ravel(), values.ravel())] * 3
    for _ in range(2):
        apart = np.stack([np.abs(values[:, c] - curves[c][known[:, c]]) for c in range(3)]).max(0)
        still = apart <= np.median(apart)
        curves = [_medians(known[still, c], values[still, c]) for c in range(3)]
    return np.stack([curves[c][levels[..., c]] for c in range(3)], -1)


def _medians(known: np.ndarray, values: np.ndarray) -> np.ndarray:
    """The median of the values at each of 256 known levels, rising."""
    order = np.lexsort((values, known))
    ends = np.searchsorted(known[order], np.arange(257))
    present = np.flatnonzero(ends[1:] > ends[:-1])
    medians = np.maximum.accumulate(values[order][(ends[present] + ends[present + 1]) // 2])
    return np.interp(np.arange(256), present, medians).astype(np.float32)


def disagreement(aligned: Aligned, middle: int) -> np.ndarray:
    """Where exposures show something else than the middle one, ``(H, W)`` in [0, 1]: the greatest difference from what they should show by `seen_as`."""
    reference = aligned.ldr[middle]
    worst = np.zeros(reference.shape[:2], np.float32)
    for i, (picture, valid) in enumerate(zip(aligned.ldr, aligned.valid, strict=True)):
        if i != middle:
            apart = picture - seen_as(reference, picture, valid)
            # What is white in the middle one may be anything brighter.
            apart = np.where(reference > _WHITE / 255, np.maximum(-apart, 0), np.abs(apart))
            worst = np.maximum(worst, apart.max(-1) * valid)
    return worst


def homography(picture: np.ndarray, reference: np.ndarray) -> tuple[np.ndarray | None, str]:
    """The 3x3 matrix that takes a pixel ``(x, y, 1)`` of the reference to its place in the picture, or None; and a few words on the matches behind that.

    Args:
        picture: ``(H, W)`` uint8, of the same exposure as the reference.
        reference: ``(H, W)`` uint8.

    Source: features by Lowe, "Distinctive image features from scale-invariant keypoints", 2004; the estimate by Barath, Matas and Noskova, "MAGSAC", 2019.
    """
    height, width = reference.shape
    scale = min(_LARGEST / max(height, width), 1.0)
    small = [
        cv2.resize(gray, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA) if scale < 1 else gray
        for gray in (picture, reference)
    ]
    sift = cv2.SIFT.create(_FEATURES)
    (points, described), (points_to, described_to) = (sift.detectAndCompute(gray, None) for gray in small)
    if min(len(points), len(points_to)) < _MATCHES:
        return None, count(min(len(points), len(points_to)), "feature")
    nearest = cv2.BFMatcher().knnMatch(described_to, described, 2)
    pairs = [two[0] for two in nearest if len(two) == 2 and two[0].distance < _RATIO * two[1].distance]
    if len(pairs) < _MATCHES:
        return None, f"{len(pairs)} match{'' if len(pairs) == 1 else 'es'}"
    source = np.array([points_to[pair.queryIdx].pt for pair in pairs])
    target = np.array([points[pair.trainIdx].pt for pair in pairs])
    cv2.setRNGSeed(0)
    matrix, agree = cv2.findHomography(source, target, cv2.USAC_MAGSAC, _TOLERANCE, maxIters=10_000, confidence=0.9999)
    found = 0 if agree is None else int(agree.sum())
    if matrix is None or found < max(_MATCHES, _SHARE * len(pairs)):
        return None, f"{found} of {len(pairs)} matches agree"
    # A pixel's centre is at whole numbers, so scaling is about its corner.
    factors = np.array([small[1].shape[1] / width, small[1].shape[0] / height])
    shrink = np.diag([*factors, 1.0])
    shrink[:2, 2] = factors / 2 - 0.5
    matrix = np.linalg.inv(shrink) @ matrix @ shrink
    matrix /= matrix[2, 2]
    moved = _farthest(matrix, (height, width))
    if not moved <= _FARTHEST * math.hypot(height, width):
        return None, f"{found} matches agree on a motion of {moved:.0f} pixels"
    return matrix, f"{found} of {len(pairs)} matches agree"


def flow(picture: np.ndarray, reference: np.ndarray) -> np.ndarray:
    """Where each pixel of the reference lies in the picture, ``(H, W, 2)`` as ``(x, y)``: points are tracked there and back, and the rest is filled in.

    Args:
        picture: ``(H, W)`` uint8, of the same exposure as the reference.
        reference: ``(H, W)`` uint8.

    Source: Lucas and Kanade, 1981, in pyramids (Bouguet, 2000), as OpenCV has it.
    """
    height, width = reference.shape
    top, left = (min(_SPACING // 2, (extent - 1) // 2) for extent in (height, width))
    rows, columns = np.arange(top, height, _SPACING), np.arange(left, width, _SPACING)
    points = np.stack(np.meshgrid(columns, rows), -1).astype(np.float32)
    there, seen = _tracked(reference, picture, points.reshape(-1, 1, 2))
    back, seen_back = _tracked(picture, reference, there)
    missed = np.linalg.norm(back[:, 0] - points.reshape(-1, 2), axis=1)
    held = (seen & seen_back & (missed < _BACK)).reshape(points.shape[:2])
    motion = _filled(there.reshape(points.shape) - points, held)
    motion = np.stack([cv2.medianBlur(np.ascontiguousarray(motion[..., axis]), 5) for axis in range(2)], -1)
    y, x = np.mgrid[:height, :width].astype(np.float32)
    dense = cv2.remap(
        motion, (x - left) / _SPACING, (y - top) / _SPACING, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE
    )
    return np.stack([x, y], -1) + dense


def warp(picture: np.ndarray, place: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The picture read at ``place``, a matrix (3, 3) or an array (H, W, 2), and a mask of where that lies inside of it."""
    height, width = picture.shape[:2]
    if place.shape == (3, 3):
        place = _places(place, height, width)
    x, y = place[..., 0].astype(np.float32), place[..., 1].astype(np.float32)
    read = cv2.remap(picture, x, y, cv2.INTER_CUBIC, borderMode=cv2.BORDER_REPLICATE)
    inside = (x >= -0.5) & (x <= width - 0.5) & (y >= -0.5) & (y <= height - 0.5)
    return np.clip(read, 0, 1), inside


def _background(picture: np.ndarray, reference: np.ndarray, stops: float) -> tuple[np.ndarray | None, str]:
    """A homography, or a translation, or None; and a line that says why."""
    gray, gray_to = _same_exposure(picture, reference, stops)
    matrix, why = homography(gray, gray_to)
    if matrix is not None:
        height, width = gray.shape
        grid = np.stack(np.meshgrid(np.linspace(0, width - 1, 9), np.linspace(0, height - 1, 9)), -1).reshape(-1, 2)
        if np.median(_motion(matrix, grid)) <= _STANDS:
            return None, f"stands still ({why})"
        if _apart(gray, gray_to, matrix) > _NO_WORSE * _apart(gray, gray_to):
            return None, f"no motion found that makes it agree better ({why}): left as it is"
        return matrix, f"moved by {_farthest(matrix, gray.shape):.1f} pixels at the most ({why})"
    shift = _translation(gray, gray_to)
    if shift is not None:
        matrix = np.array([[1, 0, shift[0]], [0, 1, shift[1]], [0, 0, 1]], np.float64)
    if shift is None or _apart(gray, gray_to, matrix) >= _BETTER * _apart(gray, gray_to):
        return None, f"too little to match ({why}, of {_MATCHES} wanted): left as it is"
    return matrix, f"too little to match for a homography ({why}): moved by ({shift[0]:.1f}, {shift[1]:.1f}) pixels"


def _same_exposure(picture: np.ndarray, reference: np.ndarray, stops: float) -> tuple[np.ndarray, np.ndarray]:
    """Gray pictures of 8 bits, the shorter exposure brightened until its histogram is the longer one's, so that both clip at about the same places."""
    gray, gray_to = (
        np.rint(cv2.cvtColor(np.ascontiguousarray(one), cv2.COLOR_RGB2GRAY) * 255).astype(np.uint8)
        for one in (picture, reference)
    )
    if stops < 0:
        return _brightened(gray, gray_to), gray_to
    return gray, _brightened(gray_to, gray)


def _brightened(short: np.ndarray, long: np.ndarray) -> np.ndarray:
    share, share_to = (np.cumsum(np.bincount(gray.ravel(), minlength=256)) / gray.size for gray in (short, long))
    return np.searchsorted(share_to, share - 1e-9).clip(0, 255).astype(np.uint8)[short]


def _apart(gray: np.ndarray, gray_to: np.ndarray, matrix: np.ndarray | None = None) -> float:
    """How much a picture moved by a matrix differs from another, where it shows something. Strong differences, as of moving things, count alike."""
    picture, reference = (one.astype(np.float32) / 255 for one in (gray, gray_to))
    shown = np.ones(gray.shape, bool)
    if matrix is not None:
        picture, shown = warp(picture, matrix)
    return float(np.minimum(np.abs(picture - reference)[shown], _STRONG).mean()) if shown.any() else math.inf


def _translation(gray: np.ndarray, gray_to: np.ndarray) -> np.ndarray | None:
    """The translation ``(x, y)`` of the picture, by maximal correlation (ECC) or by median thresholds (Ward); None if neither agrees better than no motion."""
    scale = min(800 / max(gray.shape), 1.0)
    small, small_to = (cv2.resize(g, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA) for g in (gray, gray_to))

    def agreement(shift: np.ndarray) -> float:
        matrix = np.array([[1, 0, shift[0]], [0, 1, shift[1]]], np.float32)
        size = small.shape[::-1]
        moved = cv2.warpAffine(small, matrix, size, flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP)
        shown = cv2.warpAffine(np.full_like(small, 255), matrix, size, flags=cv2.WARP_INVERSE_MAP) == 255
        one, other = moved[shown].astype(np.float64), small_to[shown].astype(np.float64)
        if shown.mean() < 0.5 or min(one.std(), other.std()) < 1:
            return 0.0
        return float(np.corrcoef(one, other)[0, 1])

    if min(small.shape) < _SMALLEST:
        return None
    candidates = []
    try:
        stop = (cv2.TERM_CRITERIA_EPS | cv2.TERM_CRITERIA_COUNT, 100, 1e-5)
        start = np.eye(2, 3, dtype=np.float32)
        candidates.append(cv2.findTransformECC(small_to, small, start, cv2.MOTION_TRANSLATION, stop)[1][:, 2])
    except cv2.error:
        pass  # It did not converge.
    candidates.append(-np.array(cv2.createAlignMTB(6).calculateShift(small_to, small), np.float64))
    best = max(candidates, key=agreement)
    if agreement(best) < max(_AGREES, agreement(np.zeros(2))):
        return None
    return best / scale


def _farthest(matrix: np.ndarray, size: tuple[int, ...]) -> float:
    """How far a homography moves the corner that it moves most; infinite if it turns the picture over or folds it."""
    height, width = size
    corners = np.array([[0, 0], [width - 1, 0], [width - 1, height - 1], [0, height - 1]], np.float64)
    if not (corners @ matrix[2, :2] + matrix[2, 2] > 0.1).all():
        return math.inf
    moved = _through(matrix, corners).astype(np.float32)
    if not cv2.isContourConvex(moved) or cv2.contourArea(moved, True) <= 0:
        return math.inf
    return float(_motion(matrix, corners).max())


def _motion(matrix: np.ndarray, points: np.ndarray) -> np.ndarray:
    return np.linalg.norm(_through(matrix, points) - points, axis=-1)


def _through(matrix: np.ndarray, points: np.ndarray) -> np.ndarray:
    """Where a homography takes points ``(..., 2)``."""
    ends = points @ matrix[:, :2].T + matrix[:, 2]
    return ends[..., :2] / ends[..., 2:]


def _places(matrix: np.ndarray, height: int, width: int) -> np.ndarray:
    y, x = np.mgrid[:height, :width].astype(np.float64)
    return _through(matrix, np.stack([x, y], -1))


def _tracked(one: np.ndarray, other: np.ndarray, points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Where points ``(n, 1, 2)`` of one picture lie in the other, and which were found."""
    there, found, _ = cv2.calcOpticalFlowPyrLK(
        one, other, points, points.copy(), winSize=(_WINDOW, _WINDOW), maxLevel=_LEVELS
    )
    return there, found[:, 0] == 1


def _filled(motion: np.ndarray, held: np.ndarray) -> np.ndarray:
    """The motion where it is ``held``; elsewhere a mean of what is held nearby, in ever wider surroundings."""
    result, known = np.where(held[..., None], motion, 0).astype(np.float32), held.copy()
    sigma = 1.0
    while not known.all() and sigma < 2 * max(held.shape):
        weight = cv2.GaussianBlur(held.astype(np.float32), (0, 0), sigma)
        near = cv2.GaussianBlur(np.where(held[..., None], motion, 0).astype(np.float32), (0, 0), sigma)
        new = ~known & (weight > 1e-3)
        result[new] = (near / np.maximum(weight, 1e-6)[..., None])[new]
        known |= new
        sigma *= 2
    return result
