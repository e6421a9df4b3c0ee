"""What runs: gate, decision session, actuators, the bundle on disk. Knows nothing of engines or of
fitting."""
