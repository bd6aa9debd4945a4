"""The device agent: trains a segment and its exit on local data."""
