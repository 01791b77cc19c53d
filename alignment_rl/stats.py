"""How far apart are two arms, how sure is that, and what does a curve say?

Numbers only. A score is float in [0, 1] and NaN means unscored, never 0.
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence

import numpy as np

LEVEL = 0.95  # of every interval
FEW = 6  # k cases all go one way by chance with 2^(1-k): over 5 % below 6
_BLOCK = 2**22  # draws held at a time, so that memory does not grow with n


@dataclasses.dataclass(frozen=True)
class PairedDifference:
  """Mean of treatment minus control, in units of the score.

  Attributes:
    n: pairs that were scored on both sides.
    difference: their mean difference; NaN if n = 0.
    low: lower end of the 95 % interval; NaN if n < 2.
    high: upper end.
    dropped: pairs left out because one side is unscored.
    changed: pairs whose two scores differ.
  """

  n: int
  difference: float
  low: float
  high: float
  dropped: int = 0
  changed: int = 0


@dataclasses.dataclass(frozen=True)
class Verdict:
  """The differences of an arm over benchmarks, in sum.

  Attributes:
    mean: over the benchmarks that have a pair, see `mean_over_benchmarks`.
    ahead: benchmarks with a difference above 0.
    behind: below 0.
    up: names of those whose interval lies above 0.
    down: below 0.
    thin: names in `up` or `down` where fewer than FEW pairs differ: too few to
      tell, whatever the interval says.
    half_width: median over benchmarks of half an interval; NaN without any.
  """

  mean: PairedDifference
  ahead: int
  behind: int
  up: list[str]
  down: list[str]
  thin: list[str]
  half_width: float


def share_interval(share: float, n: float) -> tuple[float, float]:
  """The 95 % interval of a share of n independent cases (Wilson 1927).

  `n` may be the number of clusters, where cases of one cluster go together.
  """
  if not n:
    return np.nan, np.nan
  z2 = 1.959964**2
  centre = (share + z2 / (2 * n)) / (1 + z2 / n)
  half = math.sqrt(share * (1 - share) * z2 / n + z2**2 / (4 * n**2))
  return centre - half / (1 + z2 / n), centre + half / (1 + z2 / n)


def calibration(
  confidence: np.ndarray, right: np.ndarray, bins: int = 10
) -> tuple[float, list[tuple[float, float, int]]]:
  """How well 'p sure' is right in a share p of the cases.

  Args:
    confidence: float [n] in [0.5, 1], of the more likely of two answers.
    right: float [n], 1 where that answer is right, 0.5 where there is none.
    bins: of equal width.

  Returns:
    Expected calibration error (Guo et al. 2017, arXiv:1706.04599), and for each
    bin that holds cases its mean confidence, share right, and number.
  """
  places = np.minimum(((confidence - 0.5) * 2 * bins).astype(int), bins - 1)
  rows = [
    (float(confidence[m].mean()), float(right[m].mean()), int(m.sum()))
    for m in (places == b for b in range(bins))
    if m.any()
  ]
  error = sum(abs(c - r) * n for c, r, n in rows) / max(len(confidence), 1)
  return float(error), rows


def paired_bootstrap(
  treatment: np.ndarray,
  control: np.ndarray,
  *,
  seed: int = 0,
  resamples: int = 10_000,
) -> PairedDifference:
  """Mean paired difference with a percentile bootstrap interval over items.

  Items are drawn with replacement, both arms' scores of an item together
  (Efron & Tibshirani 1993, chapter 13). Differences are sorted first and every
  draw is also used mirrored in rank, so the order of items does not matter and
  swapping the arms swaps the interval, but for rounding. With few items that
  differ the interval is too narrow: k differences, all of one sign, exclude 0
  from about k = 4 on, while chance alone does that with probability 2^(1-k).

  Args:
    treatment: float [n], NaN = unscored.
    control: float [n], the same items in the same order.
    seed: of the draws.
    resamples: draws, rounded up to an even number.

  Raises:
    ValueError: the arrays are not of one length.
  """
  treatment = np.asarray(treatment, np.float64)
  control = np.asarray(control, np.float64)
  if treatment.ndim != 1 or treatment.shape != control.shape:
    raise ValueError(
      f'expected two arrays [n], got {treatment.shape} and {control.shape}'
    )
  difference = treatment - control
  paired = np.sort(difference[~np.isnan(difference)])
  n, dropped = len(paired), int(np.isnan(difference).sum())
  mean = float(paired.mean()) if n else np.nan
  changed = int((paired != 0).sum())
  if n < 2:
    return PairedDifference(n, mean, np.nan, np.nan, dropped, changed)
  rng = np.random.default_rng(seed)
  half, rows = (resamples + 1) // 2, max(1, _BLOCK // n)
  means = []
  for start in range(0, half, rows):
    draw = rng.integers(n, size=(min(rows, half - start), n))
    # -paired[n - 1 - draw] is what this draw gives for the swapped arms.
    means += [paired[draw].mean(1), paired[n - 1 - draw].mean(1)]
  tail = (1 - LEVEL) / 2
  low, high = np.quantile(np.concatenate(means), [tail, 1 - tail])
  return PairedDifference(n, mean, float(low), float(high), dropped, changed)


def mean_over_benchmarks(
  differences: Sequence[float], *, seed: int = 0, resamples: int = 10_000
) -> PairedDifference:
  """Unweighted mean of one difference a benchmark, NaN = not comparable.

  The interval is a bootstrap over benchmarks: it answers whether another set of
  such benchmarks would agree, and `n` counts benchmarks.
  """
  differences = np.asarray(differences, np.float64)
  return paired_bootstrap(
    differences, np.zeros_like(differences), seed=seed, resamples=resamples
  )


def judge(pairs: Mapping[str, PairedDifference]) -> Verdict:
  """Sums up an arm; `pairs` is benchmark name -> its difference."""
  pairs = {name: p for name, p in pairs.items() if p.n}
  differences = [p.difference for p in pairs.values()]
  up = [name for name, p in pairs.items() if p.low > 0]
  down = [name for name, p in pairs.items() if p.high < 0]
  widths = [p.high - p.low for p in pairs.values() if p.n > 1]
  return Verdict(
    mean=mean_over_benchmarks(differences),
    ahead=sum(d > 0 for d in differences),
    behind=sum(d < 0 for d in differences),
    up=up,
    down=down,
    thin=[name for name in up + down if pairs[name].changed < FEW],
    half_width=float(np.median(widths)) / 2 if widths else math.nan,
  )


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
