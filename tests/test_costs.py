"""Matrix products, bytes and collectives, counted and worked by hand."""

import jax
import jax.numpy as jnp
import pytest
from jax.experimental import pallas as pl
from jax.sharding import NamedSharding, PartitionSpec

from alignment_rl import costs, hlo, sharding


def of(*shape, dtype=jnp.float32):
  return jax.ShapeDtypeStruct(shape, dtype)


def flops(function, *shapes, trips=None):
  return costs.matrix_flops(jax.jit(function).trace(*shapes).jaxpr, trips)


# Of x [4, 8] and w [8, 8]: 2 * 4 * 8 * 8 = 512 each.
PRODUCT = 512
X, W = of(4, 8), of(8, 8)


def loop(x, w, n):
  return jax.lax.fori_loop(0, n, lambda i, x: x @ w, x)


def scan(x, ws):
  return jax.lax.scan(lambda x, w: (jnp.tanh(x @ w), None), x, ws)[0]


def either(x, w):
  return jax.lax.cond(x.sum() > 0, lambda: x @ w @ w, lambda: x @ w)


def kernel(x, w):
  def body(x, w, out):
    out[...] = jnp.dot(x[...], w[...])

  row = pl.BlockSpec((1, 8), lambda i: (i, 0))
  every = pl.BlockSpec((8, 8), lambda i: (0, 0))
  return pl.pallas_call(
    body, grid=(4,), in_specs=[row, every], out_specs=row,
    out_shape=of(4, 8), interpret=True,
  )(x, w)  # fmt: skip


PRODUCTS = {
  'one': (lambda x, w: x @ w, (X, W), 1),
  'batched': (lambda x, w: jnp.einsum('bxy,byz->bxz', x, w),
              (of(3, 4, 8), of(3, 8, 8)), 3),
  'nothing': (lambda x, w: x + w[:4], (X, W), 0),
  'scanned': (scan, (X, of(7, 8, 8)), 7),
  'longest branch': (either, (X, W), 2),
  'and two backward': (
    jax.grad(lambda x, w: jnp.sin(x @ w).sum(), (0, 1)), (X, W), 3),
  'backward through a scan': (
    jax.grad(lambda w, x: scan(x, w).sum()), (of(7, 8, 8), X), 3 * 7),
  'repeated': (
    jax.grad(lambda w, x: jax.checkpoint(scan)(x, w).sum()),
    (of(7, 8, 8), X), 4 * 7),
  'grid of a kernel': (kernel, (X, W), 1),
}  # fmt: skip


@pytest.mark.parametrize('name', PRODUCTS)
def test_matrix_flops_by_hand(name):
  function, shapes, products = PRODUCTS[name]
  assert flops(function, *shapes) == products * PRODUCT


def test_a_loop_that_the_data_end_takes_the_trips_given():
  with pytest.raises(ValueError, match='how often'):
    flops(loop, X, W, of(dtype=jnp.int32))
  assert flops(loop, X, W, of(dtype=jnp.int32), trips=2.5) == 2.5 * PRODUCT


def test_what_each_device_does_counts_once_for_each():
  mesh = sharding.make_mesh({'data': 4, 'fsdp': 1, 'tensor': 2})
  rows = PartitionSpec('data')
  each = jax.shard_map(
    jnp.matmul, mesh=mesh, in_specs=(rows, PartitionSpec()), out_specs=rows
  )
  # A device of each of the 4 x 2 multiplies one of four rows.
  assert flops(each, X, W) == 2 * PRODUCT


def compiled(function, shapes, sizes, specs, out):
  """The text of a program whose arguments and result are split so."""
  mesh = sharding.make_mesh(dict(zip(sharding.AXES, sizes, strict=True)))
  place = lambda spec: NamedSharding(mesh, PartitionSpec(*spec))
  program = jax.jit(
    function, in_shardings=tuple(map(place, specs)), out_shardings=place(out)
  )
  return program.trace(*shapes).lower().compile().as_text(), mesh


BOTH = ('data', 'fsdp')
# The mesh; how y [8, 16], w [16, 8] and y w are split over its eight devices;
# and what each of them sends, in bytes.
SPLITS = {
  # Each has a part of every sum: an eighth goes round twice.
  'contracted': ((1, 1, 8), (None, 'tensor'), ('tensor',), (),
                 {('all-reduce', 'tensor'): 2 * 7 / 8 * 8 * 8 * 4}),
  # Columns apart from each other: nothing to send.
  'columns': ((1, 1, 8), (), (None, 'tensor'), (None, 'tensor'), {}),
  # A row of y with all of w, of which a device has two rows.
  'gathered': ((1, 8, 1), ('fsdp',), ('fsdp',), ('fsdp',),
               {('all-gather', 'fsdp'): 7 * 2 * 8 * 4}),
  'over two axes': ((2, 4, 1), (BOTH,), (BOTH,), (BOTH,),
                    {('all-gather', 'data+fsdp'): 7 * 2 * 8 * 4}),
  # Rows over one axis and columns over another.
  'over one of two': ((2, 1, 4), ('data',), ('data', 'tensor'),
                      ('data', 'tensor'),
                      {('all-gather', 'data'): 8 * 2 * 4}),
}  # fmt: skip


@pytest.mark.parametrize('name', SPLITS)
def test_costs_of_a_split_product_by_hand(name):
  sizes, *specs, out, sent = SPLITS[name]
  shapes = of(8, 16), of(16, 8)
  found = costs.read(*compiled(jnp.matmul, shapes, sizes, specs, out))
  assert found.flops == 2 * 8 * 16 * 8 / 8
  assert found.collectives == sent
  assert found.bytes_sent == sum(sent.values())


def test_a_loop_costs_its_body_every_time():
  specs = ('fsdp',), (None, 'fsdp')
  shapes = of(8, 8), of(7, 8, 8)
  found = costs.read(*compiled(scan, shapes, (1, 8, 1), specs, ('fsdp',)))
  assert found.flops == 7 * 2 * 8 * 8 * 8 / 8
  assert found.collectives == {('all-gather', 'fsdp'): 7 * 7 * 8 * 4}


def test_a_compiled_loop_that_the_data_end_takes_the_trips_given():
  shapes = of(8, 8), of(8, 8), of(dtype=jnp.int32)
  specs = ('fsdp',), (), ()
  text, mesh = compiled(loop, shapes, (1, 8, 1), specs, ('fsdp',))
  with pytest.raises(ValueError, match='is not known'):
    costs.read(text, mesh)
  found = costs.read(text, mesh, trips=2.5)
  assert found.flops == 2.5 * 2 * 8 * 8 * 8 / 8


# As XLA prints the devices of a collective, of eight; and the groups they are.
GROUPS = {
  'replica_groups={{0,1},{2,3},{4,5},{6,7}}': [[0, 1], [2, 3], [4, 5], [6, 7]],
  'replica_groups={}, ': [[0, 1, 2, 3, 4, 5, 6, 7]],
  'replica_groups=[2,4]<=[8]': [[0, 1, 2, 3], [4, 5, 6, 7]],
  'replica_groups=[4,2]<=[2,4]T(1,0)': [[0, 4], [1, 5], [2, 6], [3, 7]],
  "replica_groups=mesh['axis_0'=2,'axis_1'=4] {'axis_0'}": [
    [0, 4], [1, 5], [2, 6], [3, 7]],
  "replica_groups=mesh['a'=2,'b'=2,'c'=2] {'a','c'}": [
    [0, 1, 4, 5], [2, 3, 6, 7]],
  # The eight as [4, 2], turned to [2, 4]: 0 2 4 6 1 3 5 7.
  "replica_groups=mesh['a'=2,'b'=4], device_ids=([4,2]T(1,0)) {'b'}": [
    [0, 2, 4, 6], [1, 3, 5, 7]],
  # Of b the major half of its four: b is two by two.
  "replica_groups=mesh['a'=2,'b'=4] {'b':(1)2}": [
    [0, 2], [1, 3], [4, 6], [5, 7]],
  'source_target_pairs={{0,1},{1,0}}': [[0, 1], [1, 0]],
}  # fmt: skip


@pytest.mark.parametrize('text', GROUPS)
def test_groups_of_devices_are_read_in_every_notation(text):
  found = costs.device_groups(f', channel_id=1, {text}, dimensions={{0}}', 8)
  assert found.tolist() == GROUPS[text]


def test_an_unknown_notation_is_said():
  with pytest.raises(ValueError, match='cannot read the devices'):
    costs.device_groups(', replica_groups=<new>', 8)


# As a TPU's compiler prints a loop of 3 trips: batch axes are axes of a
# convolution, places in caches have S(1), and a counter ends the loop.
TPU = """HloModule jit_f, input_output_alias={ {0}: (0, {}, may-alias) }

%part (p0: bf16[7,16,8], p1: s32[]) -> bf16[1,16,8] {
  %p0 = bf16[7,16,8]{2,1,0:T(8,128)(2,1)} parameter(0)
  %p1 = s32[]{:T(128)} parameter(1)
  %c = s32[]{:T(128)} constant(0)
  ROOT %slice = bf16[1,16,8]{2,1,0:T(8,128)(2,1)} dynamic-slice(%p0, %p1, %c, %c), dynamic_slice_sizes={1,16,8}
}

%product (q0: bf16[5,4,8], q1: bf16[5,6,8]) -> f32[5,4,6] {
  %q0 = bf16[5,4,8]{2,1,0:T(8,128)(2,1)} parameter(0)
  %q1 = bf16[5,6,8]{2,1,0:T(8,128)(2,1)} parameter(1)
  ROOT %conv = f32[5,4,6]{2,1,0:T(8,128)} convolution(%q0, %q1), window={size=5 stride=4 lhs_dilate=5}, dim_labels=0bf_0oi->0bf
}

%all-reduce-scatter.1 (r: f32[5,4,6]) -> f32[5,2,6] {
  %r = f32[5,4,6]{2,1,0:T(8,128)S(1)} parameter(0)
  %whole = f32[5,4,6]{2,1,0:T(8,128)} all-reduce(%r), channel_id=2, replica_groups=[4,2]<=[8], use_global_device_ids=true, to_apply=%add
  %z = s32[]{:T(128)} constant(0)
  ROOT %half = f32[5,2,6]{2,1,0:T(8,128)S(1)} dynamic-slice(%whole, %z, %z, %z), dynamic_slice_sizes={5,2,6}
}

%end (e: (s32[], bf16[7,16,8], bf16[5,4,8], bf16[5,6,8])) -> pred[] {
  %n = s32[]{:T(128)} constant(3)
  %e = (s32[]{:T(128)}, bf16[7,16,8]{2,1,0}, bf16[5,4,8]{2,1,0}, bf16[5,6,8]{2,1,0}) parameter(0)
  %i = s32[]{:T(128)} get-tuple-element(%e), index=0
  ROOT %lt = pred[]{:T(512)} compare(%i, %n), direction=LT
}

%body (b: (s32[], bf16[7,16,8], bf16[5,4,8], bf16[5,6,8])) -> (s32[], bf16[7,16,8], bf16[5,4,8], bf16[5,6,8]) {
  %b = (s32[]{:T(128)}, bf16[7,16,8]{2,1,0}, bf16[5,4,8]{2,1,0}, /*index=3*/bf16[5,6,8]{2,1,0}) parameter(0)
  %j = s32[]{:T(128)} get-tuple-element(%b), index=0
  %w = bf16[7,16,8]{2,1,0:T(8,128)(2,1)} get-tuple-element(%b), index=1
  %x = bf16[5,4,8]{2,1,0:T(8,128)(2,1)} get-tuple-element(%b), index=2
  %y = bf16[5,6,8]{2,1,0:T(8,128)(2,1)} get-tuple-element(%b), index=3
  %layer = bf16[1,16,8]{2,1,0:T(8,128)(2,1)S(1)} fusion(%w, %j), kind=kLoop, calls=%part
  %xy = f32[5,4,6]{2,1,0:T(8,128)S(1)} fusion(%x, %y), kind=kOutput, calls=%product
  %sum = f32[5,4,6]{2,1,0:T(8,128)} all-reduce(%xy), channel_id=1, replica_groups=[4,2]<=[8], use_global_device_ids=true, to_apply=%add
  %scattered = f32[5,2,6]{2,1,0:T(8,128)S(1)} fusion(%xy), kind=kCustom, calls=%all-reduce-scatter.1
  %one = s32[]{:T(128)} constant(1)
  %k = s32[]{:T(128)} add(%j, %one)
  ROOT %next = (s32[]{:T(128)}, bf16[7,16,8]{2,1,0}, bf16[5,4,8]{2,1,0}, bf16[5,6,8]{2,1,0}) tuple(%k, %w, %x, %y)
}

ENTRY %main (a: bf16[7,16,8]) -> bf16[7,16,8] {
  %a = bf16[7,16,8]{2,1,0:T(8,128)(2,1)} parameter(0)
  %t = (s32[]{:T(128)}, bf16[7,16,8]{2,1,0}, bf16[5,4,8]{2,1,0}, bf16[5,6,8]{2,1,0}) tuple(%a, %a, %a, %a)
  %loop = (s32[]{:T(128)}, bf16[7,16,8]{2,1,0}, bf16[5,4,8]{2,1,0}, bf16[5,6,8]{2,1,0}) while(%t), condition=%end, body=%body
  ROOT %out = bf16[7,16,8]{2,1,0:T(8,128)(2,1)} get-tuple-element(%loop), index=1
}
"""  # noqa: E501


def test_what_a_tpu_does_by_hand():
  mesh = sharding.make_mesh({'data': 4, 'fsdp': 1, 'tensor': 2})
  found = costs.read(TPU, mesh)
  # Five products of [4, 8] and [8, 6].
  assert found.flops == 3 * 5 * 2 * 4 * 8 * 6
  # A layer of seven is read, into a cache; so are both factors. The sum is
  # read from the cache and written.
  layer, factors, result = (
    16 * 8 * 2,
    (5 * 4 * 8 + 5 * 6 * 8) * 2,
    5 * 4 * 6 * 4,
  )
  # Beside them the counter: 4 bytes of the fusion's second argument, and added
  # to from two and into one.
  assert found.bytes_moved == 3 * (layer + 4 + factors + result + 12)
  # Of two, each sends half and half again, or half alone.
  assert found.collectives == {
    ('all-reduce', 'tensor'): 3 * result,
    ('reduce-scatter', 'tensor'): 3 * result / 2,
  }
  assert hlo.interface_bytes(TPU) == (7 * layer, 7 * layer, 7 * layer)


def test_a_loop_of_larger_steps_runs_less_often():
  mesh = sharding.make_mesh({'data': 4, 'fsdp': 1, 'tensor': 2})
  # To 6 by twos, or to 5.
  for end in (6, 5):
    text = TPU.replace('constant(3)', f'constant({end})')
    text = text.replace('constant(1)', 'constant(2)')
    assert costs.read(text, mesh) == costs.read(TPU, mesh)
  unknown = TPU.replace('add(%j, %one)', 'multiply(%j, %one)')
  with pytest.raises(ValueError, match='is not known'):
    costs.read(unknown, mesh)


def test_bytes_of_a_program_are_those_of_the_compiler():
  """Without loops, both count the same."""
  mesh = sharding.make_mesh({'data': 8, 'fsdp': 1, 'tensor': 1})
  f = lambda x, w: jnp.tanh(x @ w).sum(0) @ w.T
  done = jax.jit(f).lower(of(64, 32), of(32, 16)).compile()
  moved = costs.read(done.as_text(), mesh).bytes_moved
  assert moved == pytest.approx(
    done.cost_analysis()['bytes accessed'], rel=0.05
  )
