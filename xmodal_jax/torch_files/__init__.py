"""PyTorch's files read without PyTorch. Nothing is imported here: the child process of
:mod:`xmodal_jax.torch_files.pth` loads this package, and must stay small."""
