"""The manifests of docker/kuberay.

Kubernetes' own kinds and the pod templates are checked against its strict schemas, which refuse unknown
fields. Of KubeRay's two kinds no schema is at hand without a network: their fields are checked against a list
made from its reference (kuberay.schema.json), its rules between fields and its defaults are not. No cluster
ran them.
"""

import json
import shlex
from copy import deepcopy
from pathlib import Path

import jsonschema
import kubernetes_validate
import pytest
from deployment import DOCKER, documents, parse_command, pinned

import tune_fusion
from tune_fusion import search
from tune_fusion.space.loading import resolve_space

FOLDER = DOCKER / "kuberay"
SCHEMA = json.loads((Path(__file__).parent / "kuberay.schema.json").read_text())


def manifest(name):
    (document,) = documents(FOLDER / f"{name}.yaml")
    return document


def clusters():
    return [manifest("raycluster")["spec"], manifest("rayjob")["spec"]["rayClusterSpec"]]


def groups(cluster):
    """Head and worker groups of a cluster."""
    return [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]


def check(resource):
    version = kubernetes_validate.latest_version()
    kubernetes_validate.validate(resource, version, strict=True)


def check_pods(cluster):
    for group in groups(cluster):
        check({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "a"}, **group["template"]})


def test_every_manifest_is_checked():
    kinds = {path.stem: [document["kind"] for document in documents(path)] for path in FOLDER.iterdir()}
    assert kinds == {
        "network-policy": ["NetworkPolicy"],
        "raycluster": ["RayCluster"],
        "rayjob": ["RayJob"],
        "storage": ["PersistentVolumeClaim"],
    }


@pytest.mark.parametrize("name", ["storage", "network-policy"])
def test_kubernetes_own_kinds_follow_their_schemas(name):
    check(manifest(name))
    with pytest.raises(kubernetes_validate.ValidationError):
        check({**manifest(name), "spce": {}})


@pytest.mark.parametrize("name", ["raycluster", "rayjob"])
def test_kuberays_kinds_have_fields_that_exist(name):
    jsonschema.Draft202012Validator.check_schema(SCHEMA)
    jsonschema.validate(manifest(name), SCHEMA)
    wrong = deepcopy(manifest(name))
    wrong["spec"]["authOption"] = {"mode": "token"}
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(wrong, SCHEMA)


@pytest.mark.parametrize("cluster", clusters(), ids=["raycluster", "rayjob"])
def test_pods_follow_kubernetes_schema(cluster):
    check_pods(cluster)
    wrong = deepcopy(cluster)
    wrong["workerGroupSpecs"][0]["template"]["spec"]["containers"][0]["volumeMount"] = []
    with pytest.raises(kubernetes_validate.ValidationError):
        check_pods(wrong)


def test_the_job_runs_on_the_same_cluster():
    cluster, of_job = clusters()
    assert of_job == cluster


@pytest.mark.parametrize("cluster", clusters(), ids=["raycluster", "rayjob"])
class TestCluster:
    def test_it_asks_for_the_token(self, cluster):
        assert cluster["authOptions"] == {"mode": "token"}
        assert cluster["headGroupSpec"]["serviceType"] == "ClusterIP"

    def test_its_versions_are_ours(self, cluster):
        assert cluster["rayVersion"] == pinned("ray")
        containers = [c for group in groups(cluster) for c in group["template"]["spec"]["containers"]]
        assert {c["image"] for c in containers} == {f"tune_fusion:{tune_fusion.__version__}"}

    def test_ray_starts_with_options_that_it_has(self, cluster):
        for group in groups(cluster):
            words = [f"--{name}={value}" for name, value in group["rayStartParams"].items()]
            options = parse_command(["ray", "start", *words])
            assert (options["num_cpus"] == 0) == (group is cluster["headGroupSpec"])

    def test_workers_have_gpus_and_the_head_needs_none(self, cluster):
        asked = [g["template"]["spec"]["containers"][0]["resources"]["limits"] for g in groups(cluster)]
        assert ["nvidia.com/gpu" in limits for limits in asked] == [False, True]

    def test_pods_have_no_privileges_and_no_secret_of_kubernetes(self, cluster):
        for group in groups(cluster):
            pod = group["template"]["spec"]
            assert pod["automountServiceAccountToken"] is False
            assert pod["securityContext"]["runAsNonRoot"] is True
            assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
            assert not pod.keys() & {"hostNetwork", "hostPID", "hostIPC"}
            for container in pod["containers"]:
                assert container["securityContext"] == {
                    "allowPrivilegeEscalation": False,
                    "capabilities": {"drop": ["ALL"]},
                }

    def test_secrets_are_references(self, cluster):
        literal = {
            variable["name"]
            for group in groups(cluster)
            for container in group["template"]["spec"]["containers"]
            for variable in container["env"]
            if "value" in variable
        }
        assert literal == {"TUNE_FUSION_DATA"}

    def test_all_nodes_share_one_claim(self, cluster):
        claim = manifest("storage")
        assert claim["spec"]["accessModes"] == ["ReadWriteMany"]
        for group in groups(cluster):
            pod = group["template"]["spec"]
            shared = {v["name"]: v for v in pod["volumes"]}["shared"]
            assert shared["persistentVolumeClaim"]["claimName"] == claim["metadata"]["name"]
            mounts = [m["name"] for c in pod["containers"] for m in c["volumeMounts"]]
            assert sorted(mounts) == sorted(v["name"] for v in pod["volumes"])


def test_the_jobs_cluster_is_gone_when_the_search_ends_and_nothing_is_tried_twice():
    spec = manifest("rayjob")["spec"]
    assert spec["shutdownAfterJobFinishes"] is True
    assert spec["backoffLimit"] == spec["submitterConfig"]["backoffLimit"] == 0


def test_the_job_runs_a_search_with_options_that_it_has():
    python, _, module, *words = shlex.split(manifest("rayjob")["spec"]["entrypoint"])
    assert (python, module) == ("python", "tune_fusion.search")
    options = search._parser().parse(words)
    assert resolve_space(options.space).exists()
    mounts = clusters()[1]["headGroupSpec"]["template"]["spec"]["containers"][0]["volumeMounts"]
    shared = next(mount["mountPath"] for mount in mounts if mount["name"] == "shared")
    assert Path(options.storage).is_relative_to(shared)


def test_the_policy_selects_the_pods_of_ray():
    """KubeRay labels every pod of Ray so."""
    spec = manifest("network-policy")["spec"]
    assert spec["podSelector"]["matchLabels"] == {"ray.io/is-ray-node": "yes"}
    assert spec["policyTypes"] == ["Ingress"]
    assert {key for rule in spec["ingress"] for source in rule["from"] for key in source} == {
        "podSelector",
        "namespaceSelector",
    }
