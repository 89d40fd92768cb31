"""From data to a deployed model service: what services, CI and the cluster call. See docs/ for the whole picture."""

__version__ = "0.11.0"
