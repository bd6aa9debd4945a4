"""hsee: split learning with early exits for real, mixed IoT fleets."""

__version__ = "0.1.0"
