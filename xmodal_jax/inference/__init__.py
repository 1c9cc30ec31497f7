"""Using a trained matcher: load a bundle, embed, score, search, serve. Imports neither TensorFlow nor any model."""

from xmodal_jax.inference.bundle import Bundle, load

__all__ = ["Bundle", "load"]
