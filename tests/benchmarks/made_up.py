"""Files for benchmarks that read public sets: made-up ones, or the real ones.

With $ALIGNMENT_RL_DATA, the folder of the public sets, tests read those too.
"""

import os

import pytest

DATA = os.environ.get('ALIGNMENT_RL_DATA')
needs_data = pytest.mark.skipif(not DATA, reason='needs the public files')


def write(folder, files):
  """Writes {path: text} into `folder`, which it returns."""
  for name, text in files.items():
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
  return folder
