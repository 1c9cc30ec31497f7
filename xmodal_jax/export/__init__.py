"""From a run folder to a bundle."""
