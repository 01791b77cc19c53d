"""The authored beneficial-trait scenarios: data, schema, TFDS builder."""
