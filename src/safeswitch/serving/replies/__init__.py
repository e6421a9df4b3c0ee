"""What the guard writes into replies, one form for each kind of route."""
