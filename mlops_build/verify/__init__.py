"""Checks what is about to be deployed: rendered Kubernetes manifests and CI specs.

`check(path)` is the entry point. document.py parses YAML with line numbers, overlay.py renders overlays and maps values to their source
lines, schema.py validates with Kubernetes' schemas, the other modules hold one family of rules each, and rules.toml describes every rule.
"""

from mlops_build.verify.examine import check
from mlops_build.verify.report import Report

__all__ = ["Report", "check"]
