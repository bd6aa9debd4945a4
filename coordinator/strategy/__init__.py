"""Strategies: pure decisions on what the coordinator trains next."""
