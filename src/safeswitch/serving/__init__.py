"""The guarded server: decisions in replies, who may choose a policy, audit, metrics."""
