"""The coordinator: trains the rest of the network."""
