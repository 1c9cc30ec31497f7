"""One file per system; each defines ``class Model(Matcher)`` and is found by its name."""
