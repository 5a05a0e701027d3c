"""Benchmarks of ARRoL, and the runner and reports around them."""
