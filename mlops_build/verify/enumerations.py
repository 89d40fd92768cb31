"""Fields that take one of a fixed set of words. The published schemas only say string; the words are from the API reference."""

from collections.abc import Iterator, Mapping
from typing import Any

from mlops_build.verify.document import Path
from mlops_build.verify.schema import display, dotted, suggestion
from mlops_build.verify.world import BUILT_IN, Fault, World

# By the field's name, or by (parent field, field) where the name is ambiguous.
WORDS: Mapping[str | tuple[str, str], tuple[str, ...]] = {
    "concurrencyPolicy": ("Allow", "Forbid", "Replace"),
    "completionMode": ("NonIndexed", "Indexed"),
    "dnsPolicy": ("ClusterFirst", "ClusterFirstWithHostNet", "Default", "None"),
    "externalTrafficPolicy": ("Cluster", "Local"),
    "imagePullPolicy": ("Always", "IfNotPresent", "Never"),
    "internalTrafficPolicy": ("Cluster", "Local"),
    "pathType": ("Exact", "Prefix", "ImplementationSpecific"),
    "persistentVolumeReclaimPolicy": ("Retain", "Delete", "Recycle"),
    "podManagementPolicy": ("OrderedReady", "Parallel"),
    "preemptionPolicy": ("PreemptLowerPriority", "Never"),
    "restartPolicy": ("Always", "OnFailure", "Never"),
    "sessionAffinity": ("ClientIP", "None"),
    "terminationMessagePolicy": ("File", "FallbackToLogsOnError"),
    "volumeBindingMode": ("Immediate", "WaitForFirstConsumer"),
    "volumeMode": ("Filesystem", "Block"),
    "whenUnsatisfiable": ("DoNotSchedule", "ScheduleAnyway"),
    ("httpGet", "scheme"): ("HTTP", "HTTPS"),
    ("matchExpressions", "operator"): ("In", "NotIn", "Exists", "DoesNotExist", "Gt", "Lt"),
    ("ports", "protocol"): ("TCP", "UDP", "SCTP"),
    ("seccompProfile", "type"): ("RuntimeDefault", "Localhost", "Unconfined"),
    ("spec", "accessModes"): ("ReadWriteOnce", "ReadOnlyMany", "ReadWriteMany", "ReadWriteOncePod"),
    ("spec", "policyTypes"): ("Ingress", "Egress"),
    ("strategy", "type"): ("RollingUpdate", "Recreate"),
    ("tolerations", "effect"): ("NoSchedule", "PreferNoSchedule", "NoExecute"),
    ("tolerations", "operator"): ("Exists", "Equal", "Lt", "Gt"),
    ("updateStrategy", "type"): ("RollingUpdate", "OnDelete"),
}
OF_KIND: Mapping[tuple[str, str, str], tuple[str, ...]] = {
    ("Service", "spec", "type"): ("ClusterIP", "NodePort", "LoadBalancer", "ExternalName"),
    ("HorizontalPodAutoscaler", "metrics", "type"): ("Resource", "Pods", "Object", "External", "ContainerResource"),
    ("HorizontalPodAutoscaler", "target", "type"): ("Utilization", "Value", "AverageValue"),
}
# Objects whose content is free text, not fields.
FREE = {"ConfigMap", "Secret", "CustomResourceDefinition"}
NOT_FIELDS = {"labels", "annotations", "matchLabels", "env", "args", "command"}


def check(world: World) -> Iterator[Fault]:
    for obj in world.objects:
        if obj.group in BUILT_IN and obj.kind not in FREE:
            for path, above, key, value in _words(obj.data.get("spec"), ("spec",), "", "spec"):
                allowed = OF_KIND.get((obj.kind, above, key)) or WORDS.get((above, key)) or WORDS.get(key)
                if allowed and value not in allowed:
                    hint = suggestion(value, list(allowed)) or f"one of {', '.join(allowed)}"
                    yield Fault("wrong-value", obj, path, f"{dotted(path)} is {display(value)}", hint)


def _words(value: Any, path: Path, above: str, field: str) -> Iterator[tuple[Path, str, str, str]]:
    """Every string below: its path, parent field, field and value. Items of a list are values of the list's field."""
    if isinstance(value, str):
        yield path, above, field, value
    elif isinstance(value, list):
        for index, inner in enumerate(value):
            yield from _words(inner, (*path, index), above, field)
    elif isinstance(value, Mapping):
        for key, inner in value.items():
            if key not in NOT_FIELDS:
                yield from _words(inner, (*path, key), field, key)
