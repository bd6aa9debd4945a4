"""Cut layers chosen from profiles: pure functions."""
