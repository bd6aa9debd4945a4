"""Dealing with devices: who may take part and who speaks for each, plans, what comes in, what goes out, events."""
