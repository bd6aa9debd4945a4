"""Measured boards: schema, measurement, where profiles are found."""
