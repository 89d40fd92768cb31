"""Plain files and kustomizations outside a service: no finding for what may be right."""

import os
import shutil
from pathlib import Path

import pytest

from mlops_build.verify import check

needs_kubectl = pytest.mark.skipif(not shutil.which("kubectl"), reason="kubectl is not on PATH")

POD = """\
    metadata:
      labels: {app: web}
    spec:
      serviceAccountName: made-elsewhere
      containers:
        - name: web
          image: nginx
          ports: [{containerPort: 80}]
          envFrom:
            - configMapRef: {name: made-elsewhere}
            - secretRef: {name: made-elsewhere}
          volumeMounts: [{name: data, mountPath: /data}]
      volumes:
        - name: data
          persistentVolumeClaim: {claimName: made-elsewhere}
"""
DEPLOYMENT = (
    f"apiVersion: apps/v1\nkind: Deployment\nmetadata: {{name: web}}\nspec:\n  selector: {{matchLabels: {{app: web}}}}\n  template:\n{POD}"
)
SERVICE = "---\napiVersion: v1\nkind: Service\nmetadata: {name: web}\nspec:\n"
ROLE = "apiVersion: rbac.authorization.k8s.io/v1\nkind: ClusterRole\n"
PRIVILEGED = "image: nginx\n          securityContext: {privileged: true}"
VARIABLES = """\
          env:
            - {name: PASSWORD_FILE, value: /run/secret}
            - {name: TOKEN, value: $(OTHER)}
            - {name: MAX_TOKENS, value: '512'}
            - {name: API_KEY, value: ''}
            - {name: SECRET_NAME, value: web}
"""
INGRESS = """\
apiVersion: networking.k8s.io/v1
kind: Ingress
metadata: {name: web}
spec:
  rules: [{http: {paths: [{path: /, pathType: Prefix, backend: {service: {name: other-team, port: {number: 80}}}}]}}]
"""
GOOD = {
    "references to objects that are not defined": DEPLOYMENT
    + f"---\n{INGRESS}"
    + """---
apiVersion: v1
kind: Service
metadata: {name: metrics}
spec: {selector: {run: by-an-operator}, ports: [{port: 9090}]}
---
apiVersion: v1
kind: ConfigMap
metadata: {name: another}
data: {a: b}
""",
    "a port that is not listed": DEPLOYMENT + SERVICE + "  {selector: {app: web}, ports: [{port: 80, targetPort: 9000}]}\n",
    "a Service of one pod of a StatefulSet": DEPLOYMENT.replace("Deployment", "StatefulSet").replace("  sel", "  serviceName: web\n  sel")
    + SERVICE
    + "  selector: {app: web, statefulset.kubernetes.io/pod-name: web-0}\n  ports: [{port: 80}]\n",
    "a Service without a selector": SERVICE + "  {type: ExternalName, externalName: db.example.com}\n",
    "a custom resource": "apiVersion: example.com/v1\nkind: Anything\nmetadata: {name: a.b.c}\nspec: {whatever: [1, {deep: true}]}\n",
    "a role": ROLE + "metadata: {name: 'system:Node'}\nrules: []\n",
    "a configuration file": "apiVersion: kubelet.config.k8s.io/v1beta1\nkind: KubeletConfiguration\nmaxPods: 10\n",
    "a template": DEPLOYMENT.replace("name: web}", "name: web}\n  replicas: {{ replicas }}") + "status: {{ status }}\n",
    "a host to be replaced": "apiVersion: networking.k8s.io/v1\nkind: Ingress\nmetadata: {name: web}\nspec: {rules: [{host: __HOST__}]}\n",
    "placeholders in names": "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: '${NAME}', namespace: <namespace>}\n",
    "words to be replaced": "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: APP_NAME, namespace: REPLACEME, labels: {app: $$app$$}}\n",
    "a number to be replaced": DEPLOYMENT.replace("spec:\n  selector", "spec:\n  replicas: NUM_PODS\n  selector"),
    "an empty value beside valueFrom": DEPLOYMENT.replace(
        "          envFrom:", "          env: [{name: A, value: '', valueFrom: {fieldRef: {fieldPath: metadata.name}}}]\n          envFrom:"
    ),
    "a Job with dots in its name": "apiVersion: batch/v1\nkind: Job\nmetadata: {name: a.stress.1}\nspec:\n  template:\n"
    + POD.replace("serviceAccountName", "restartPolicy: Never\n      serviceAccountName"),
    "arguments that name tokens": DEPLOYMENT.replace(
        "          ports:",
        "          args: [--initial-cluster-token=etcd-1, '--token=a-$(NAMESPACE)', '--api-secret={{ api-secret }}']\n          ports:",
    ),
    "a privileged DaemonSet": DEPLOYMENT.replace("Deployment", "DaemonSet").replace("image: nginx", PRIVILEGED),
    "null is absent": DEPLOYMENT.replace("metadata: {name: web}", "metadata: {name: web, creationTimestamp: null}") + "status: null\n",
    "a list of objects": "apiVersion: v1\nkind: List\nitems:\n  - apiVersion: v1\n    kind: ConfigMap\n    metadata: {name: a}\n",
    "a file of something else": "name: not a manifest\nversion: 2\nservices: {}\n",
    "no document at all": "# nothing\n---\n",
    "values that only look like passwords": DEPLOYMENT.replace("          envFrom:", VARIABLES + "          envFrom:"),
}


@pytest.mark.parametrize("name", GOOD)
def test_manifests_that_may_be_right_have_no_finding(name: str, tmp_path: Path) -> None:
    (tmp_path / "all.yaml").write_text(GOOD[name])
    assert [(finding.rule, finding.line, finding.why) for finding in check(tmp_path).findings] == []
    assert check(tmp_path / "all.yaml").findings == []


@needs_kubectl
def test_a_kustomization_may_leave_words_to_be_replaced(tmp_path: Path) -> None:
    (tmp_path / "all.yaml").write_text(GOOD["a number to be replaced"])
    (tmp_path / "kustomization.yaml").write_text("resources: [all.yaml]\n")
    assert places(tmp_path) == []


def places(folder: Path) -> list[tuple[str, str | None, int | None]]:
    return [(finding.rule, finding.file, finding.line) for finding in check(folder).findings]


GPU_ON_CPU = (
    DEPLOYMENT.replace("ports:", "resources: {limits: {nvidia.com/gpu: 1}}\n          ports:")
    + """---
apiVersion: autoscaling/v2
kind: HorizontalPodAutoscaler
metadata: {name: web}
spec:
  maxReplicas: 3
  scaleTargetRef: {apiVersion: apps/v1, kind: Deployment, name: web}
  metrics: [{type: Resource, resource: {name: cpu, target: {type: Utilization, averageUtilization: 80}}}]
"""
)
BUDGET = """---
apiVersion: policy/v1
kind: PodDisruptionBudget
metadata: {name: web}
spec: {minAvailable: null, maxUnavailable: 0, selector: {matchLabels: {app: web}}}
"""
MONITOR = """apiVersion: monitoring.coreos.com/v1
kind: ServiceMonitor
metadata: {name: web}
spec: {selector: {matchLabels: {app: web}}, endpoints: [{port: http}]}
"""
VOLUME = "apiVersion: v1\nkind: PersistentVolume\nmetadata: {name: a}\n"
STORAGE = "spec: {capacity: {storage: 1Gi}, accessModes: [ReadWriteAll], hostPath: {path: /x}}\n"


@pytest.mark.parametrize(
    ("text", "rule", "why"),
    [
        ("apiVersion: v1\nkind: ServiceAccount\n", "missing-field", "metadata.name is missing"),
        ("apiVersion: v1\nkind: Namespace\nmetadata: {labels: {a: b}}\n", "missing-field", "metadata.name is missing"),
        ("apiVersion: v1\nkind: ConfigMap\nmetadata: null\n", "missing-field", "metadata.name is missing"),
        (f"{ROLE}metadata: {{}}\n", "missing-field", "metadata.name is missing"),
        (f"{ROLE}metadata: {{name: a/b}}\n", "bad-name", "'a/b', which is not a name without / and %"),
        (MONITOR.replace("name: web", "name: Bad Name"), "bad-name", "metadata.name is 'Bad Name'"),
        (MONITOR.replace("app: web", "app: x y"), "bad-label", "spec.selector.matchLabels.app is 'x y'"),
        (f"{VOLUME}spec: {{capacity: {{storage: 1Gi}}}}\n", "missing-field", "spec needs accessModes and capacity"),
        (INGRESS.replace("{number: 80}", "{}"), "ingress-backend", "service.port has neither a name nor a number"),
        (VOLUME + STORAGE, "wrong-value", "spec.accessModes[0] is 'ReadWriteAll'"),
        (DEPLOYMENT.replace("spec:\n", "spec:\n  progressDeadlineSeconds: 0\n", 1), "progress-deadline", "is 0; the minimum is 1"),
        (DEPLOYMENT.replace("spec:\n", "spec:\n  minReadySeconds: 600\n", 1), "progress-deadline", "must be greater than minReadySeconds"),
        (GPU_ON_CPU, "hpa-cpu-gpu", "it scales Deployment/web on CPU"),
        (DEPLOYMENT + BUDGET, "pdb-blocks", "maxUnavailable 0 allows no eviction"),
    ],
)
def test_what_the_api_server_refuses_or_never_works(tmp_path: Path, text: str, rule: str, why: str) -> None:
    (tmp_path / "all.yaml").write_text(text)
    [finding] = [finding for finding in check(tmp_path).findings if finding.rule == rule]
    assert why in finding.why


def test_what_may_be_defined_elsewhere_is_left_to_the_cluster(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text(DEPLOYMENT.replace("app: web}", "app: website}"))
    (tmp_path / "b.yaml").write_text(
        "apiVersion: v1\nkind: Service\nmetadata: {name: web}\nspec:\n  selector:\n    app: websites\n  ports: [{port: 80}]\n"
    )
    (tmp_path / "c.yaml").write_text("apiVersion: v1\nkind: ConfigMap\nmetadata:\n  name: made-elsewher\n")
    assert places(tmp_path) == []


def test_items_of_a_list_have_their_own_lines(tmp_path: Path) -> None:
    good = "  - apiVersion: v1\n    kind: ConfigMap\n    metadata: {name: good}\n"
    items = good + good.replace("{name: good}", "\n      name: Bad_Name")
    (tmp_path / "list.yaml").write_text(f"apiVersion: v1\nkind: List\nitems:\n{items}")
    assert places(tmp_path) == [("bad-name", "list.yaml", 10)]


def test_an_object_that_a_file_defines_twice(tmp_path: Path) -> None:
    (tmp_path / "all.yaml").write_text("---\n".join(["apiVersion: v1\nkind: ConfigMap\nmetadata:\n  name: a\n"] * 2))
    (tmp_path / "alternative.yaml").write_text("apiVersion: v1\nkind: ConfigMap\nmetadata:\n  name: a\n")
    assert places(tmp_path) == [("duplicate-object", "all.yaml", 9)]


def test_folders_are_checked_separately(tmp_path: Path) -> None:
    for name, image in (("one", "nginx"), ("two", "Nginx")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "web.yaml").write_text(DEPLOYMENT.replace("image: nginx", f"image: {image}"))
    assert places(tmp_path) == [("bad-image", "two/web.yaml", 13)]


def test_charts_and_other_peoples_files_are_left_out(tmp_path: Path) -> None:
    outside = tmp_path / "outside.yaml"
    outside.write_text("a: b: c\n")
    inside = tmp_path / "inside"
    (inside / "chart" / "templates").mkdir(parents=True)
    (inside / "chart" / "Chart.yaml").write_text("name: chart\n")
    (inside / "chart" / "templates" / "all.yaml").write_text("{{ if .Values.x }}\n")
    (inside / "node_modules").mkdir()
    (inside / "node_modules" / "x.yaml").write_text("a: b: c\n")
    (inside / "link.yaml").symlink_to(outside)
    report = check(inside)
    assert (report.findings, report.files) == ([], 0)


@needs_kubectl
def test_a_kustomization_is_judged_as_it_renders(tmp_path: Path) -> None:
    base, overlay, part = tmp_path / "base", tmp_path / "overlay", tmp_path / "part"
    for folder in (base, overlay, part):
        folder.mkdir()
    # The base without the overlay lacks its selector, the patch lacks everything.
    (base / "web.yaml").write_text(DEPLOYMENT.replace("  selector: {matchLabels: {app: web}}\n", "").replace("made-elsewhere", "default"))
    (base / "kustomization.yaml").write_text("resources: [web.yaml]\n")
    memory = "          resources:\n            limits:\n              memory: 2GB\n"
    head = "apiVersion: apps/v1\nkind: Deployment\nmetadata: {name: web}\nspec:\n  template:\n    spec:\n      containers:\n"
    (overlay / "memory.yaml").write_text(f"{head}        - name: web\n{memory}")
    (overlay / "kustomization.yaml").write_text(
        "resources: [../base]\ncomponents: [../part]\ncommonLabels: {app: web}\nnamePrefix: my-\npatches: [{path: memory.yaml}]\n"
        "configMapGenerator: [{name: default, literals: [a=b]}]\n"
    )
    (part / "kustomization.yaml").write_text("apiVersion: kustomize.config.k8s.io/v1alpha1\nkind: Component\ncommonAnnotations: {a: b}\n")
    assert check(tmp_path).notes == []
    assert places(tmp_path) == [("bad-quantity", "overlay/memory.yaml", 11)]


@needs_kubectl
def test_overlays_that_are_not_rendered_add_notes(tmp_path: Path) -> None:
    for name, resource in (("network", "https://example.com/app.yaml"), ("missing", "nowhere.yaml")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "kustomization.yaml").write_text(f"resources: [{resource}]\n")
    report = check(tmp_path)
    assert report.findings == []
    assert "network was not rendered: it loads 'https://example.com/app.yaml' from the network" in report.notes
    assert any(note.startswith("missing was not rendered: accumulating resources") for note in report.notes)


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
def test_an_unreadable_file_adds_a_note(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("a: 1\n")
    (tmp_path / "a.yaml").chmod(0)
    assert "a.yaml was not read" in check(tmp_path).notes[0]
