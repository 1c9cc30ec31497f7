"""`xmodal convert`: checkpoints of the original authors' PyTorch code."""
