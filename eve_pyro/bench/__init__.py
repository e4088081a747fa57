"""Comparisons: the same data, seeds and budget with one thing swapped, a row a run."""
