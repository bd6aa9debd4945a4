"""A fleet on one machine, on the same code as the real run."""
