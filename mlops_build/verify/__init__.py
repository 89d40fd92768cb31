"""What is wrong with what is about to be deployed: Kubernetes manifests as they render, and Bamboo specs.

`examine(path)` is the door. document.py reads YAML with its lines, overlay.py renders and finds the way back to the sources, schema.py asks
Kubernetes' schemas, the other files hold one family of rules each, and catalogue.py says what every rule is about.
"""

from mlops_build.verify.examine import examine, look
from mlops_build.verify.report import Report

__all__ = ["Report", "examine", "look"]
