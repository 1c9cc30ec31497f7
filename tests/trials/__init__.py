"""Attacks on everything that is kept or served, many times each: `launch/reliability.sh` runs them."""
