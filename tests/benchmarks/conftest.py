"""The folder that an area's benchmarks read in its tests."""

import pathlib

import pytest
from made_up import DATA, needs_data, write


@pytest.fixture
def folder(request, tmp_path):
  """The made-up files of every demo of the area."""
  for benchmark in request.module.MODULE.BENCHMARKS:
    write(tmp_path, benchmark.demo.files)
  return tmp_path


@pytest.fixture(params=['demo', pytest.param('real', marks=needs_data)])
def either(request, folder):
  """The made-up files, and the real ones where they are at hand."""
  return folder if request.param == 'demo' else pathlib.Path(DATA)
