"""What brings events into the chain."""
