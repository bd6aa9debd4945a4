"""Holds any agent, in any language, to PROTOCOL.md: ``python -m toolkit.conformance``."""
