"""Fields that take one of a few words. The published schemas say only that they are text; the words are those of the API reference."""

from collections.abc import Iterator, Mapping
from typing import Any

from mlops_build.verify.document import Path
from mlops_build.verify.schema import dotted, meant, shown
from mlops_build.verify.world import BUILT_IN, Fault, World

# By the field's name, or by (the field above, the field) where a name alone is not enough.
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
# Objects that hold text of others, not fields.
FREE = {"ConfigMap", "Secret", "CustomResourceDefinition"}
NOT_FIELDS = {"labels", "annotations", "matchLabels", "env", "args", "command"}


def check(world: World) -> Iterator[Fault]:
    for one in world.objects:
        if one.group in BUILT_IN and one.kind not in FREE:
            for path, above, key, value in _words(one.data.get("spec"), ("spec",), "", "spec"):
                allowed = OF_KIND.get((one.kind, above, key)) or WORDS.get((above, key)) or WORDS.get(key)
                if allowed and value not in allowed:
                    hint = meant(value, list(allowed)) or f"one of {', '.join(allowed)}"
                    yield Fault("wrong-value", one, path, f"{dotted(path)} is {shown(value)}", hint)


def _words(value: Any, path: Path, above: str, field: str) -> Iterator[tuple[Path, str, str, str]]:
    """Every text below: its path, the field above its field, its field, and itself. Items of a list are values of the list's field."""
    if isinstance(value, str):
        yield path, above, field, value
    elif isinstance(value, list):
        for index, inner in enumerate(value):
            yield from _words(inner, (*path, index), above, field)
    elif isinstance(value, Mapping):
        for key, inner in value.items():
            if key not in NOT_FIELDS:
                yield from _words(inner, (*path, key), field, key)
