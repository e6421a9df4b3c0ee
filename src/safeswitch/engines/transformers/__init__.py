"""The transformers engine: whole batches in lockstep, rows that switch rolled back inside the
batch."""
