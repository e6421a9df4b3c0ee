"""The switch: gate, actuators, refusal-head training, the bundle on disk. Knows nothing of engines."""
