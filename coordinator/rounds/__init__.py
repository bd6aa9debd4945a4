"""Rounds: the loop, written once, each device within it, how far devices may run ahead, a run under way."""
