"""ONE table from logical to mesh axes.

Models name logical axes on every parameter; this table says where they go, so a
new sharding is a change of the table and of nothing else.
"""

from jax.sharding import PartitionSpec

AXES = ('data', 'fsdp', 'tensor')

RULES = (
  ('vocab', 'tensor'),
  ('embed', 'fsdp'),
  ('heads', 'tensor'),
  ('kv_heads', 'tensor'),
  ('head_dim', None),
  ('mlp', 'tensor'),
  ('rank', None),
  ('layers', None),
)

# Rows of a batch are split over both.
ROWS = PartitionSpec(('data', 'fsdp'))
