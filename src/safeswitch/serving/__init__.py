"""The guarded server: verdicts in replies, who may choose a policy, audit, metrics."""
