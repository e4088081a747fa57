"""A run's page: what was trained, how it scores, what its units do, in one HTML file that needs nothing else."""

from eve_pyro.report.page import write_report

__all__ = ["write_report"]
