"""The protocol: no I/O, no clock, no torch."""
