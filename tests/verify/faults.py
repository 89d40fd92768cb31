"""Single faults in the service in app/: each is one edit, the rule that must find it, and the line that must be reported.

`tests/verify/test_faults.py` checks our rules; `benchmarks/verify.py` also runs other tools.
"""

import re
import shutil
from dataclasses import dataclass
from pathlib import Path

APP = Path(__file__).parent / "app"
BASE, OVERLAY = "deploy/base", "deploy/overlays/production"
DEPLOYMENT, SERVICE, INGRESS = f"{BASE}/deployment.yaml", f"{BASE}/service.yaml", f"{BASE}/ingress.yaml"
HPA, PDB, POLICY, CLAIM = f"{BASE}/hpa.yaml", f"{BASE}/pdb.yaml", f"{BASE}/networkpolicy.yaml", f"{BASE}/claim.yaml"
MONITOR, SETTINGS, CONFIG = f"{BASE}/servicemonitor.yaml", "service.yaml", f"{BASE}/configmap.yaml"
PATCH, KUSTOMIZATION = f"{OVERLAY}/patch.yaml", f"{OVERLAY}/kustomization.yaml"
LONG = "a" * 64


@dataclass(frozen=True)
class Fault:
    """One fault. old → new: the edit in `file` (old empty: appended). at: text that only the reported line holds, after the edit.

    also: further edits that it takes, as (file, old, new). where: the reported file, if it is another one. listed: one of the 29 faults in
    Kubernetes manifests that tools were first compared on.
    """

    name: str
    rule: str
    file: str
    old: str
    new: str
    at: str
    also: tuple[tuple[str, str, str], ...] = ()
    where: str | None = None
    listed: bool = False

    def apply(self, folder: Path) -> Path:
        """A copy of the app in `folder` (which must not exist), with the fault."""
        root = Path(shutil.copytree(APP, folder))
        for file, old, new in ((self.file, self.old, self.new), *self.also):
            path = root / file
            text = path.read_text() if path.exists() else ""
            assert old in text, f"{self.name}: {old!r} is not in {file}"
            path.write_text(text.replace(old, new, 1) if old else text + new)
        return root

    def line(self, root: Path) -> int:
        """The number of the line that must be reported."""
        lines = (root / (self.where or self.file)).read_text().splitlines()
        matching = [number for number, line in enumerate(lines, 1) if re.search(self.at, line)]
        assert len(matching) == 1, f"{self.name}: {self.at!r} is on lines {matching}"
        return matching[0]


# Each a part of base/deployment.yaml, to be replaced.
PROBE = (
    "          readinessProbe:\n            httpGet:\n              path: /ping\n              port: http\n            periodSeconds: 5\n"
)
STARTUP = (
    "          startupProbe:\n            httpGet:\n              path: /health\n              port: http\n"
    "            periodSeconds: 3\n            failureThreshold: 100\n"
)
CPU = (
    "  metrics:\n    - type: Resource\n      resource:\n        name: cpu\n        target:\n"
    "          type: Utilization\n          averageUtilization: 80\n"
)
PODS = (
    "  metrics:\n    - type: Pods\n      pods:\n        metric:\n          name: requests_in_progress\n        target:\n"
    '          type: AverageValue\n          averageValue: "4"\n'
)
NO_GPU = (
    (SETTINGS, "mode: exclusive", "mode: none"),
    (DEPLOYMENT, '              nvidia.com/gpu: "1"\n', ""),
    (DEPLOYMENT, '              nvidia.com/gpu: "1"\n', ""),
)
SHARED = ((SETTINGS, "mode: exclusive", "mode: shared"), *NO_GPU[1:])
REPLICAS = (
    (f"{BASE}/kustomization.yaml", "  - hpa.yaml\n", ""),
    (DEPLOYMENT, "  progressDeadlineSeconds: 600\n", "  progressDeadlineSeconds: 600\n  replicas: 2\n"),
)
ENV = "              value: north\n"
# Where neighbours look for the leases of a shared card, and what keeps this service's from them.
LEASES = (SETTINGS, "mode: exclusive", "mode: shared")
LEASE_VARIABLE = (PATCH, ENV, f"{ENV}            - name: MLOPS_GPU_LEASE_DIR\n              value: /leases\n")
MOUNT = (
    PATCH,
    "value: /leases\n",
    "value: /leases\n          volumeMounts:\n            - name: leases\n              mountPath: /leases\n",
)
VOLUME = "      volumes:\n        - name: leases\n"
FOLDER = (PATCH, "", f"{VOLUME}          hostPath:\n            path: /run/mlops-gpu\n            type: Directory\n")
CLAIMED = (PATCH, "", f"{VOLUME}          persistentVolumeClaim:\n            claimName: digits-leases\n")
NODE_VOLUME = """\
---
apiVersion: v1
kind: PersistentVolume
metadata:
  name: digits-leases
spec:
  storageClassName: ""
  capacity:
    storage: 1Mi
  accessModes: [ReadWriteMany]
  hostPath:
    path: /run/mlops-gpu
---
apiVersion: v1
kind: PersistentVolumeClaim
metadata:
  name: digits-leases
spec:
  storageClassName: ""
  volumeName: digits-leases
  accessModes: [ReadWriteMany]
  resources:
    requests:
      storage: 1Mi
"""
ON_FOLDER = (*SHARED[1:], LEASE_VARIABLE, MOUNT, FOLDER)
ON_CLAIM = (*SHARED[1:], LEASE_VARIABLE, MOUNT, CLAIMED, (CLAIM, "", NODE_VOLUME))

FAULTS: tuple[Fault, ...] = (
    # Files
    Fault("invalid YAML", "yaml-syntax", SERVICE, "  name: digits\n", "  name: digits: model\n", "digits: model"),
    Fault("key twice", "duplicate-key", PDB, "  maxUnavailable: 1\n", "  maxUnavailable: 1\n  maxUnavailable: 2\n", "maxUnavailable: 2"),
    Fault(
        "alias bomb",
        "too-large",
        CONFIG,
        "",
        "bomb:\n  a: &a ["
        + "x, " * 99
        + "x]\n"
        + "".join(f"  {new}: &{new} [{', '.join([f'*{old}'] * 90)}]\n" for old, new in zip("abc", "bcd", strict=True)),
        "  c: ",
    ),
    Fault("overlay does not render", "overlay-render", KUSTOMIZATION, "  - path: patch.yaml\n", "  - path: pach.yaml\n", "^apiVersion"),
    Fault(
        "patch of nothing",
        "overlay-render",
        PATCH,
        "  name: digits\n",
        "  name: digit\n",
        "^apiVersion",
        where=KUSTOMIZATION,
    ),
    Fault(
        "resource from the network",
        "overlay-remote",
        KUSTOMIZATION,
        "  - ../../base\n",
        "  - ../../base\n  - https://example.com/app.yaml\n",
        "https",
    ),
    Fault("patch from the network", "overlay-remote", KUSTOMIZATION, "path: patch.yaml", "path: https://example.com/patch.yaml", "https"),
    Fault(
        "files of a ConfigMap from the network",
        "overlay-remote",
        KUSTOMIZATION,
        "",
        "configMapGenerator:\n  - name: more\n    files: [settings=https://example.com/settings]\n",
        "https",
    ),
    Fault(
        "environment without overlay",
        "overlay-missing",
        SETTINGS,
        "gpu:\n",
        "  canary:\n    namespace: ml\n    host: canary.example.com\ngpu:\n",
        "^  canary:",
    ),
    Fault(
        "ignored without a reason", "bad-ignore", SERVICE, "      port: 80\n", "      port: 80 # mlops-build: ignore bad-port\n", "ignore"
    ),
    Fault("unknown rule ignored", "bad-ignore", SETTINGS, "gpu:\n", "verify:\n  ignore:\n    privilegd: it must be\ngpu:\n", "privilegd"),
    # Schema
    Fault(
        "unknown field",
        "unknown-field",
        DEPLOYMENT,
        "  progressDeadlineSeconds: 600\n",
        "  progressDeadlineSeconds: 600\n  replica: 2\n",
        "replica: 2",
        listed=True,
    ),
    Fault("missing field", "missing-field", INGRESS, "            pathType: Prefix\n", "", "- path: /$", listed=True),
    Fault("wrong type", "wrong-type", PATCH, ENV, "              value: 8\n", "value: 8$", listed=True),
    Fault("wrong enumeration", "wrong-value", POLICY, "policyTypes: [Ingress]", "policyTypes: [Ingres]", "policyTypes"),
    Fault(
        "wrong pull policy",
        "wrong-value",
        DEPLOYMENT,
        "          ports:\n",
        "          imagePullPolicy: Allways\n          ports:\n",
        "Allways",
        listed=True,
    ),
    Fault("API that is gone", "bad-api-version", HPA, "autoscaling/v2", "autoscaling/v2beta1", "v2beta1", listed=True),
    Fault("misspelt kind", "bad-api-version", CONFIG, "", "---\napiVersion: v1\nkind: Servce\nmetadata:\n  name: other\n", "Servce"),
    # Names and numbers
    Fault(
        "name with an underscore",
        "bad-name",
        CONFIG,
        "",
        "---\napiVersion: v1\nkind: ConfigMap\nmetadata:\n  name: Digits_More\n",
        "Digits_More",
        listed=True,
    ),
    Fault(
        "container name in capitals",
        "bad-name",
        DEPLOYMENT,
        "      volumes:\n",
        "        - name: Helper\n          image: registry.example.com/helper:1\n      volumes:\n",
        "Helper",
    ),
    Fault(
        "volume twice",
        "duplicate-name",
        DEPLOYMENT,
        "      volumes:\n",
        "      volumes:\n        - name: two\n          emptyDir: {}\n        - name: two # again\n          emptyDir: {}\n",
        "again",
        where=DEPLOYMENT,
    ),
    Fault("label of 64 characters", "bad-label", DEPLOYMENT, "        tier: model\n", f"        tier: {LONG}\n", LONG, listed=True),
    Fault("label with a space", "bad-label", SERVICE, "    app: digits\n", "    app: digits\n    note: two words\n", "two words"),
    Fault("port out of range", "bad-port", SERVICE, "port: 80\n", "port: 80800\n", "80800", listed=True),
    Fault(
        "port name too long",
        "bad-port",
        DEPLOYMENT,
        "            - name: http\n              containerPort: 8080\n",
        "            - name: http\n              containerPort: 8080\n            - name: prometheus-metrics\n"
        "              containerPort: 9090\n",
        "prometheus-metrics",
        listed=True,
    ),
    Fault(
        "two ports of one name",
        "duplicate-port",
        SERVICE,
        "      targetPort: http\n",
        "      targetPort: http\n    - name: http # again\n      port: 81\n      targetPort: 8080\n",
        "again",
        listed=False,
    ),
    Fault(
        "memory in GB",
        "bad-quantity",
        DEPLOYMENT,
        '              memory: 1Gi\n              nvidia.com/gpu: "1"\n            limits:\n',
        '              memory: 1GB\n              nvidia.com/gpu: "1"\n            limits:\n',
        "1GB",
        listed=True,
    ),
    Fault(
        "memory in thousandths",
        "memory-unit",
        DEPLOYMENT,
        "            limits:\n              memory: 1Gi\n",
        "            limits:\n              memory: 1000m\n",
        "1000m",
    ),
    Fault("image in capitals", "bad-image", DEPLOYMENT, "ml/digits:v3", "ML/Digits:v3", "ML/Digits"),
    # References
    Fault(
        "Service selects nothing",
        "service-no-pods",
        SERVICE,
        "  selector:\n    app: digits\n",
        "  selector:\n    app: digit\n",
        "selector:",
        listed=True,
    ),
    Fault("target port absent", "service-target-port", SERVICE, "targetPort: http", "targetPort: web", "targetPort: web", listed=True),
    Fault("target port number absent", "service-target-port", SERVICE, "targetPort: http", "targetPort: 9090", "targetPort: 9090"),
    Fault(
        "Ingress to no Service",
        "ingress-backend",
        INGRESS,
        "                name: digits\n",
        "                name: digit\n",
        "name: digit$",
        listed=True,
    ),
    Fault(
        "Ingress to no port",
        "ingress-backend",
        INGRESS,
        "                  name: http\n",
        "                  number: 8080\n",
        "number: 8080",
    ),
    Fault(
        "HPA of nothing",
        "hpa-target",
        HPA,
        "    name: digits\n  minReplicas",
        "    name: digit\n  minReplicas",
        "name: digit$",
        listed=True,
    ),
    Fault("PDB selects nothing", "pdb-no-pods", PDB, "      app: digits\n", "      app: digit\n", "selector:", listed=True),
    Fault("NetworkPolicy selects nothing", "networkpolicy-no-pods", POLICY, "      app: digits\n", "      app: digit\n", "podSelector:"),
    Fault("NetworkPolicy of no port", "networkpolicy-port", POLICY, "port: http", "port: web", "port: web"),
    Fault("ServiceMonitor selects nothing", "servicemonitor-target", MONITOR, "      app: digits\n", "      app: digit\n", "selector:"),
    Fault("ServiceMonitor of no port", "servicemonitor-target", MONITOR, "port: http", "port: metrics", "port: metrics"),
    Fault(
        "ConfigMap missing", "missing-configmap", DEPLOYMENT, "name: digits-settings", "name: digits-setings", "digits-setings", listed=True
    ),
    Fault("key of a ConfigMap missing", "missing-configmap", CONFIG, "  level: info\n", "  levels: info\n", "key: level", where=DEPLOYMENT),
    Fault(
        "Secret misspelt",
        "missing-secret",
        DEPLOYMENT,
        "name: digits-token",
        "name: digits-tokn",
        "digits-tokn",
        also=((CONFIG, "", "---\napiVersion: bitnami.com/v1alpha1\nkind: SealedSecret\nmetadata:\n  name: digits-token\n"),),
    ),
    Fault("claim missing", "missing-claim", DEPLOYMENT, "claimName: digits-cache", "claimName: digits-cach", "digits-cach$"),
    Fault(
        "ServiceAccount missing",
        "missing-service-account",
        DEPLOYMENT,
        "serviceAccountName: digits",
        "serviceAccountName: digit",
        "serviceAccountName",
    ),
    Fault("another namespace", "namespace", KUSTOMIZATION, "namespace: ml\n", "namespace: default\n", "namespace: default"),
    # Pods
    Fault(
        "selector and labels differ",
        "selector-labels",
        DEPLOYMENT,
        "    matchLabels:\n      app: digits\n",
        "    matchLabels:\n      app: digit\n",
        "app: digit$",
        listed=True,
    ),
    Fault(
        "restartPolicy of a Deployment",
        "restart-policy",
        DEPLOYMENT,
        "      serviceAccountName: digits\n",
        "      serviceAccountName: digits\n      restartPolicy: Never\n",
        "restartPolicy",
    ),
    Fault(
        "mounted volume absent",
        "mount-without-volume",
        DEPLOYMENT,
        "            - name: tmp\n",
        "            - name: temp\n",
        "name: temp$",
        listed=True,
    ),
    Fault("two mounts at one path", "duplicate-mount", DEPLOYMENT, "mountPath: /cache", "mountPath: /tmp # again", "again"),
    Fault(
        "variable twice",
        "duplicate-env",
        PATCH,
        ENV,
        ENV + "            - name: ZONE\n              value: a\n            - name: ZONE # again\n              value: b\n",
        "again",
        listed=True,
    ),
    Fault(
        "two handlers in a probe",
        "probe-handlers",
        DEPLOYMENT,
        PROBE,
        PROBE + "            tcpSocket:\n              port: 8080\n",
        "readinessProbe",
        listed=True,
    ),
    Fault(
        "probe without a handler",
        "probe-handlers",
        DEPLOYMENT,
        PROBE,
        "          readinessProbe:\n            periodSeconds: 5\n",
        "readinessProbe",
    ),
    Fault("probe port absent", "probe-port", DEPLOYMENT, PROBE, PROBE.replace("port: http", "port: web"), "port: web", listed=True),
    Fault("probe port number absent", "probe-port", DEPLOYMENT, PROBE, PROBE.replace("port: http", "port: 9999"), "port: 9999"),
    Fault("period of 0", "probe-numbers", DEPLOYMENT, "periodSeconds: 20", "periodSeconds: 0", "periodSeconds: 0"),
    Fault(
        "success threshold of a liveness probe", "probe-numbers", DEPLOYMENT, "periodSeconds: 20", "successThreshold: 2", "successThreshold"
    ),
    Fault("no startupProbe", "no-startup-probe", DEPLOYMENT, STARTUP, "", "- name: digits$", listed=True),
    Fault("startupProbe too short", "startup-budget", DEPLOYMENT, "failureThreshold: 100", "failureThreshold: 10", "startupProbe"),
    Fault("no readinessProbe", "no-readiness-probe", DEPLOYMENT, PROBE, "", "- name: digits$"),
    Fault(
        "readiness that is always true",
        "no-readiness-probe",
        DEPLOYMENT,
        PROBE,
        '          readinessProbe:\n            exec:\n              command: ["true"]\n',
        'true"\\]',
    ),
    Fault(
        "deadline below the start-up budget",
        "progress-deadline",
        DEPLOYMENT,
        "progressDeadlineSeconds: 600",
        "progressDeadlineSeconds: 60",
        "progressDeadline",
        listed=False,
    ),
    Fault(
        "killed before preStop ends",
        "grace-period",
        DEPLOYMENT,
        "terminationGracePeriodSeconds: 60",
        "terminationGracePeriodSeconds: 10",
        "terminationGrace",
    ),
    Fault("readiness of another path", "probe-path", DEPLOYMENT, PROBE, PROBE.replace("/ping", "/healthz"), "/healthz"),
    Fault("readiness without the model", "probe-path", DEPLOYMENT, PROBE, PROBE.replace("/ping", "/v2/health/live"), "/v2/health/live"),
    Fault("metrics elsewhere", "metrics-path", MONITOR, "path: /metrics", "path: /metric", "/metric$"),
    Fault(
        "port of metrics absent",
        "metrics-path",
        DEPLOYMENT,
        "        tier: model\n",
        "        tier: model\n      annotations:\n        prometheus.io/port: '9090'\n",
        "9090",
    ),
    Fault(
        "HOME that is read-only",
        "home-read-only",
        PATCH,
        ENV,
        f"{ENV}            - name: HOME\n              value: /home/app\n"
        "          securityContext:\n            readOnlyRootFilesystem: true\n",
        "/home/app",
    ),
    Fault("invalid name of a variable", "bad-name", PATCH, ENV, f"{ENV}            - name: 2ND=ZONE\n              value: a\n", "2ND"),
    Fault(
        "invalid schedule",
        "wrong-value",
        CONFIG,
        "",
        "---\napiVersion: batch/v1\nkind: CronJob\nmetadata:\n  name: more\nspec:\n  schedule: 0 25 * * *\n  jobTemplate:\n    spec:\n"
        "      template:\n        spec:\n          restartPolicy: Never\n          containers:\n            - name: more\n"
        "              image: registry.example.com/more:1\n              securityContext: {runAsNonRoot: true}\n",
        "0 25",
    ),
    Fault("negative number", "wrong-value", DEPLOYMENT, "progressDeadlineSeconds: 600", "progressDeadlineSeconds: -600", "-600"),
    Fault("host in capitals", "bad-name", INGRESS, "  rules:\n", "  rules:\n    - host: Digits.example.com\n", "Digits.example"),
    Fault("path without a slash", "wrong-value", INGRESS, "path: /", "path: api", "path: api"),
    Fault(
        "certificate of another host",
        "tls-host",
        INGRESS,
        "  rules:\n",
        "  tls:\n    - hosts: [digits.example.org]\n      secretName: tls\n  rules:\n    - host: digits.example.com\n",
        "example.org",
    ),
    Fault(
        "one host of two environments",
        "same-host",
        SETTINGS,
        "gpu:\n",
        "  canary:\n    namespace: canary\n    host: digits.example.com # again\ngpu:\n",
        "again",
    ),
    # Updates, drains and scaling
    Fault(
        "surge and unavailable both 0",
        "rolling-update-zero",
        DEPLOYMENT,
        "maxUnavailable: 1",
        "maxUnavailable: 0",
        "maxUnavailable: 0",
        listed=True,
    ),
    Fault("Recreate with a rolling update", "recreate-rolling", DEPLOYMENT, "type: RollingUpdate", "type: Recreate", "rollingUpdate:"),
    Fault("PDB of all pods", "pdb-blocks", PDB, "maxUnavailable: 1", "minAvailable: 2", "minAvailable: 2", listed=True),
    Fault("PDB that lets none go", "pdb-blocks", PDB, "maxUnavailable: 1", "maxUnavailable: 0", "maxUnavailable: 0"),
    Fault("PDB of all pods, in percent", "pdb-blocks", PDB, "maxUnavailable: 1", "minAvailable: 51%", "minAvailable: 51%"),
    Fault("HPA on CPU for a GPU", "hpa-cpu-gpu", HPA, PODS, CPU, "name: cpu"),
    Fault(
        "HPA on a metric that nobody collects",
        "hpa-no-monitoring",
        f"{BASE}/kustomization.yaml",
        "  - servicemonitor.yaml\n",
        "",
        "name: requests_in_progress",
        where=HPA,
    ),
    Fault(
        "HPA and replicas",
        "hpa-replicas",
        DEPLOYMENT,
        "  progressDeadlineSeconds: 600\n",
        "  replicas: 2\n  progressDeadlineSeconds: 600\n",
        "replicas: 2",
    ),
    # Memory and GPUs
    Fault(
        "limit below request",
        "limit-below-request",
        DEPLOYMENT,
        "            limits:\n              memory: 1Gi\n",
        "            limits:\n              memory: 512Mi\n",
        "512Mi",
        listed=True,
    ),
    Fault(
        "no memory limit",
        "no-memory-limit",
        DEPLOYMENT,
        "            limits:\n              memory: 1Gi\n",
        "            limits:\n",
        "resources:",
    ),
    Fault(
        "GPU request unlike its limit",
        "gpu-request-limit",
        DEPLOYMENT,
        '              nvidia.com/gpu: "1"\n            limits',
        '              nvidia.com/gpu: "2"\n            limits',
        'gpu: "2"',
        listed=True,
    ),
    Fault(
        "half a GPU",
        "gpu-fraction",
        DEPLOYMENT,
        '              nvidia.com/gpu: "1"\n            limits',
        '              nvidia.com/gpu: "0.5"\n            limits',
        'gpu: "0.5"',
    ),
    Fault("surge without a spare card", "gpu-surge", DEPLOYMENT, "maxSurge: 0", "maxSurge: 1", "maxSurge: 1"),
    Fault("surge by default", "gpu-surge", DEPLOYMENT, "      maxSurge: 0\n", "", "rollingUpdate:"),
    Fault(
        "shared, and a card of its own",
        "gpu-mode",
        SETTINGS,
        "mode: exclusive",
        "mode: shared",
        'nvidia.com/gpu: "1" # limit',
        also=((DEPLOYMENT, 'nvidia.com/gpu: "1"\n          securityContext', 'nvidia.com/gpu: "1" # limit\n          securityContext'),),
        where=DEPLOYMENT,
    ),
    Fault(
        "exclusive, and no card",
        "gpu-mode",
        DEPLOYMENT,
        '              nvidia.com/gpu: "1"\n',
        "",
        "resources:",
        also=((DEPLOYMENT, '              nvidia.com/gpu: "1"\n', ""),),
    ),
    Fault(
        "shared without a runtime class",
        "gpu-runtime-class",
        SETTINGS,
        "mode: exclusive",
        "mode: shared",
        "^    spec:",
        also=SHARED[1:],
        where=DEPLOYMENT,
    ),
    Fault(
        "another budget",
        "gpu-budget",
        SETTINGS,
        "mode: exclusive",
        "mode: shared",
        "value: 8GiB",
        also=(*SHARED[1:], (PATCH, ENV, ENV + "            - name: MLOPS_GPU_MEMORY\n              value: 8GiB\n")),
        where=PATCH,
    ),
    Fault("shared without a lease directory", "gpu-leases", *LEASES, "- name: digits$", also=SHARED[1:], where=DEPLOYMENT),
    Fault("leases where nothing is mounted", "gpu-leases", *LEASES, "value: /leases", also=(*SHARED[1:], LEASE_VARIABLE), where=PATCH),
    Fault(
        "leases read-only",
        "gpu-leases",
        *LEASES,
        "readOnly",
        also=(*ON_FOLDER, (PATCH, "mountPath: /leases\n", "mountPath: /leases\n              readOnly: true\n")),
        where=PATCH,
    ),
    Fault(
        "leases of one pod",
        "gpu-leases",
        *LEASES,
        "emptyDir",
        also=(*SHARED[1:], LEASE_VARIABLE, MOUNT, (PATCH, "", f"{VOLUME}          emptyDir: {{}}\n")),
        where=PATCH,
    ),
    Fault(
        "leases in another folder",
        "gpu-leases",
        *LEASES,
        "path: /tmp",
        also=(*ON_FOLDER, (PATCH, "path: /run/mlops-gpu", "path: /tmp/leases")),
        where=PATCH,
    ),
    Fault(
        "leases in a folder of the kubelet's",
        "gpu-leases",
        *LEASES,
        "OrCreate",
        also=(*ON_FOLDER, (PATCH, "type: Directory", "type: DirectoryOrCreate")),
        where=PATCH,
    ),
    Fault(
        "lease claim read-only",
        "gpu-leases",
        *LEASES,
        "readOnly",
        also=(*ON_CLAIM, (PATCH, "claimName: digits-leases\n", "claimName: digits-leases\n            readOnly: true\n")),
        where=PATCH,
    ),
    # Security
    Fault(
        "password in a variable",
        "secret-in-env",
        PATCH,
        ENV,
        ENV + "            - name: DB_PASSWORD\n              value: hunter2\n",
        "hunter2",
        listed=True,
    ),
    Fault(
        "password in an address",
        "secret-in-env",
        PATCH,
        ENV,
        ENV + "            - name: DB\n              value: postgres://app:s3cret@db.example.com/app\n",
        "postgres",
    ),
    Fault(
        "token in an argument",
        "secret-in-env",
        DEPLOYMENT,
        "          ports:\n",
        "          args: [--api-token=0f6e8c1d9a]\n          ports:\n",
        "api-token",
    ),
    Fault(
        "token in a ConfigMap", "secret-in-configmap", CONFIG, "  level: info\n", "  level: info\n  api-token: 0f6e8c1d9a\n", "api-token"
    ),
    Fault(
        "Secret in Git",
        "secret-in-git",
        CONFIG,
        "",
        "---\napiVersion: v1\nkind: Secret\nmetadata:\n  name: digits-token\nstringData:\n  token: 0f6e8c1d\n",
        "token: 0f6e",
    ),
    Fault(
        "privileged",
        "privileged",
        DEPLOYMENT,
        "            allowPrivilegeEscalation: false\n",
        "            privileged: true\n",
        "privileged: true",
        listed=True,
    ),
    Fault(
        "host network",
        "privileged",
        DEPLOYMENT,
        "      serviceAccountName: digits\n",
        "      serviceAccountName: digits\n      hostNetwork: true\n",
        "hostNetwork",
    ),
    Fault(
        "folder of the node",
        "privileged",
        DEPLOYMENT,
        "          emptyDir:\n            sizeLimit: 1Gi\n",
        "          hostPath:\n            path: /run\n",
        "hostPath",
    ),
    Fault("root", "runs-as-root", DEPLOYMENT, "runAsUser: 10001", "runAsUser: 0", "runAsUser: 0"),
    Fault("latest", "image-tag", DEPLOYMENT, "digits:v3-0123456789ab", "digits:latest", "digits:latest", listed=True),
    Fault("no tag", "image-tag", DEPLOYMENT, "digits:v3-0123456789ab", "digits", "ml/digits$"),
)
