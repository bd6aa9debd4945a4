"""Networks, steps and data for training; torch lives here."""
