"""Pictures of a run: learning curves, ranks, scores, errors by length, retrieved examples, on one page."""
