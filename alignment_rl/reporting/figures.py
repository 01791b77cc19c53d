"""What a figure of the report is: sentences, a drawing, and its numbers."""

import dataclasses
from typing import Any

from alignment_rl.reporting.contrasts import Estimate


@dataclasses.dataclass(frozen=True)
class Number:
  """A cell of a figure's table.

  Attributes:
    where: what it was measured on or under; with `arm` the row.
    arm: whose it is.
    what: the column: 'score', 'slope', ...
    change: whether it is a difference, for which 0 means nothing.
  """

  where: str
  arm: str
  what: str
  estimate: Estimate
  change: bool = True


@dataclasses.dataclass(frozen=True)
class Figure:
  """A section of the page.

  Attributes:
    kind: how the page draws it: 'pressure', 'attack', 'dose' or 'transfer'.
    title: heading.
    lead: how to read it.
    sentences: what it shows, in words.
    numbers: all of it.
    drawing: what that kind of drawing takes.
  """

  kind: str
  title: str
  lead: str
  sentences: list[str]
  numbers: list[Number]
  drawing: Any


@dataclasses.dataclass(frozen=True)
class Point:
  """Of a plot; `low` and `high` are NaN where there is no interval.

  Attributes:
    x: place along the axis, from 0 to 1.
    y: value.
    note: what a reader sees who rests on it.
  """

  x: float
  y: float
  low: float
  high: float
  note: str


@dataclasses.dataclass(frozen=True)
class Series:
  """Points of one arm, or of several arms in one line.

  Attributes:
    arm: whose colour it has.
    label: what stands at its end.
    points: from left to right.
    joined: whether a line goes through them.
    single: (x, y) of single runs, small.
  """

  arm: str
  label: str
  points: list[Point]
  joined: bool = True
  single: list[tuple[float, float]] = dataclasses.field(default_factory=list)


@dataclasses.dataclass(frozen=True)
class Plot:
  """Series over one axis.

  Attributes:
    title: what is along y, and where.
    below: what is along x.
    across: (place from 0 to 1, label) of the marks of x.
    ticks: values of the marks of y, with the least first.
    series: what is drawn.
  """

  title: str
  below: str
  across: list[tuple[float, str]]
  ticks: list[float]
  series: list[Series]
