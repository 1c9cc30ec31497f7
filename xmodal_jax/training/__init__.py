"""From a config to a run: parts, step, optimiser, checkpoints, log."""
