"""Meshes: which devices lie along which axis, and what is said if they cannot.

The devices of several slices are stand-ins that tell where they are, as a TPU
pod's do.
"""

import dataclasses

import jax
import numpy as np
import pytest

from alignment_rl import config as config_lib
from alignment_rl import sharding
from alignment_rl.errors import UserError
from configs import base, rl, sft


@dataclasses.dataclass(frozen=True)
class Device:
  id: int
  process_index: int
  slice_index: int
  platform: str = 'cpu'
  device_kind: str = 'stand-in'


@dataclasses.dataclass(frozen=True)
class Sliceless:
  id: int
  process_index: int
  platform: str = 'cpu'
  device_kind: str = 'stand-in'


# Two slices of two hosts of two devices, in no order, as jax.devices() may be.
SLICED = [Device(i, i // 2, i // 4) for i in (5, 0, 3, 6, 1, 7, 2, 4)]
HOSTS = [Sliceless(i, i // 2) for i in range(8)]


def sizes(data=-1, fsdp=1, tensor=1):
  return {'data': data, 'fsdp': fsdp, 'tensor': tensor}


def along(mesh, what):
  """That attribute of each device, [data, fsdp, tensor]."""
  return np.vectorize(lambda d: getattr(d, what))(mesh.devices)


@pytest.mark.parametrize('slices', [-1, 2])
@pytest.mark.parametrize('shape', [(2, 4, 1), (4, 1, 2), (2, 2, 2), (8, 1, 1)])
def test_only_the_data_axis_crosses_slices(shape, slices):
  mesh = sharding.make_mesh(sizes(*shape), slices=slices, devices=SLICED)
  assert mesh.devices.shape == shape and mesh.axis_names == sharding.AXES
  found = along(mesh, 'slice_index')
  # One slice for each place of the data axis, and its halves are the slices.
  of_data = found.reshape(shape[0], -1)
  assert (of_data == of_data[:, :1]).all()
  assert of_data[:, 0].tolist() == sorted([0, 1] * (shape[0] // 2))
  assert len(set(along(mesh, 'id').flat)) == 8


def test_processes_are_slices_where_devices_tell_none():
  mesh = sharding.make_mesh(sizes(4, 2, 1), slices=4, devices=HOSTS[::-1])
  hosts = along(mesh, 'process_index')[:, :, 0]
  assert hosts.tolist() == [[0, 0], [1, 1], [2, 2], [3, 3]]
  # Unasked, they are one slice, in the order that they come in.
  mesh = sharding.make_mesh(sizes(1, 8, 1), devices=HOSTS)
  assert along(mesh, 'id').ravel().tolist() == list(range(8))


@pytest.mark.parametrize(
  'shape, slices, devices, expected',
  [
    (sizes(1, 8), 2, SLICED, "'data': 1.*data=1, which 2 slices do not divide"),
    (sizes(1, -1), -1, SLICED, 'a multiple of 2: no other axis may cross'),
    (sizes(), 1, SLICED, r'slices=1, but .* are of 2 slice\(s\) and 4 process'),
    (sizes(), 4, SLICED, r'slices=4, but the 8 device\(s\) are of 2 slice'),
    (sizes(), 2, HOSTS, r'of 1 slice\(s\) and 4 process.*number of processes'),
    (sizes(), 2, HOSTS[:2], r'of 1 slice\(s\) and 1 process'),
    (sizes(), 0, HOSTS, 'slices=0'),
    (sizes(3), 1, HOSTS, r"mesh {'data': 3.*8 device\(s\) are attached"),
    (sizes(-1, 3), 1, HOSTS, "'fsdp': 3"),
    (sizes(-1, -1), 1, HOSTS, 'set one axis to -1'),
    (sizes(8, 0), 1, HOSTS, "'fsdp': 0"),
  ],
)
def test_what_does_not_fit_is_named(shape, slices, devices, expected):
  with pytest.raises(UserError, match=expected):
    sharding.make_mesh(shape, slices=slices, devices=devices)


def test_sampling_has_a_mesh_of_its_own_if_the_config_gives_one():
  config = base.get_config().mesh
  config.fsdp, config.tensor, config.data = 4, 2, 1
  mesh, sampling = sharding.make_meshes(config, jax.devices())
  assert sampling is mesh and mesh.devices.shape == (1, 4, 2)
  config.rollout.update(data=-1, fsdp=1, tensor=2)
  mesh, sampling = sharding.make_meshes(config, jax.devices())
  assert mesh.devices.shape == (1, 4, 2)
  assert sampling.devices.shape == (4, 1, 2)
  config.rollout.tensor = 3
  with pytest.raises(UserError, match=r'config\.mesh\.rollout .*3'):
    sharding.make_meshes(config, jax.devices())


@pytest.mark.parametrize(
  'variant, chips', [('llama3_8b', 16), ('llama3_8b', 32), ('llama3_70b', 128)]
)
@pytest.mark.parametrize('get_config', [rl.get_config, sft.get_config])
def test_pod_variants_fit_the_pods_that_they_name(get_config, variant, chips):
  c = get_config(variant)
  name = c.model.weights.removeprefix('random:')
  sizes = config_lib.load('models', c.model.module).VARIANTS[name]
  devices = [Device(i, i // 4, 0) for i in range(chips)]
  updates, sampling = sharding.make_meshes(c.mesh, devices)
  rows = c.batch.prompts // c.batch.micro_batches
  sharding.check_fit(updates, sizes, {'rows': rows})
  sharding.check_fit(sampling, sizes, {'prompts': c.batch.prompts})
  # A token waits for the chips of one host, or of two.
  hosts = along(sampling, 'process_index').reshape(-1, sampling.shape['tensor'])
  assert max(len(set(row)) for row in hosts) <= 2
