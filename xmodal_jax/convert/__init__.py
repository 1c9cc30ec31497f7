"""`xmodal convert`: checkpoints of the original authors' PyTorch code. Nothing is imported here: the child process of
:mod:`xmodal_jax.convert.pth` loads this package, and must stay small."""
