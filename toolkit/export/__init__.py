"""From a trained segment to a bundle."""
