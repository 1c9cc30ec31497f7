"""Baselines without a network."""

import argparse


def main(args: argparse.Namespace) -> int:
    """`xmodal baseline METHOD`: each kind has its module."""
    from xmodal_jax.baselines import cca, nearest

    return nearest.main(args) if args.method == "nearest" else cca.main(args)
