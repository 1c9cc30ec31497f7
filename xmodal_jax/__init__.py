"""xmodal_jax: image-text matching in JAX, every system one model file and one config."""

__version__ = "0.1.0"
