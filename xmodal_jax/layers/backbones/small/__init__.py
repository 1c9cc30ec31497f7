"""A few narrow layers, for tests."""
