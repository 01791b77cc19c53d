"""What of a metric is drawn: a short curve, and round numbers at its axis."""

import math

import numpy as np


def curve(
  steps: np.ndarray, values: np.ndarray, *, points: int, window: float
) -> np.ndarray:
  """A metric over steps, short enough to draw, and its moving average.

  Args:
    steps: float [n], rising.
    values: float [n]; NaN = not measured, left out.
    points: more of them are averaged in that many equal parts.
    window: of the centred average, as a share of the points; at the ends it
      averages over what there is. 0 leaves the values as they are.

  Returns:
    float64 [3, m], m <= points: steps, values, moving average.
  """
  both = np.array([steps, values], np.float64)
  both = both[:, ~np.isnan(both[1])]
  if not both.size:
    return np.zeros((3, 0))
  parts = np.array_split(both, points, axis=1)
  steps, values = np.array([p.mean(1) for p in parts if p.size]).T
  kernel = np.ones(max(1, int(len(values) * window)))
  total = np.convolve(values, kernel, 'same')
  return np.stack(
    [steps, values, total / np.convolve(np.ones_like(values), kernel, 'same')]
  )


def ticks(low: float, high: float) -> list[float]:
  """Four to ten round numbers in equal steps that enclose [low, high]."""
  if low == high:
    low, high = min(low, 0.0), max(high, 0.0) or 1.0
  power = 10.0 ** math.floor(math.log10((high - low) / 3))
  step = max(k * power for k in (1, 2, 5) if k * power <= (high - low) / 3)
  first, last = math.floor(low / step), math.ceil(high / step)
  return [i * step for i in range(first, last + 1)]
