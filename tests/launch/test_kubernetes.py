"""Kubernetes: rendered manifests against the fields of JobSet, Job and Pod that they may use.

And against all that a cluster knows of them, where a file of it is named:

kubectl get crd jobsets.jobset.x-k8s.io --output=yaml >crd.yaml
PDREC_JOBSET_CRD=crd.yaml make test ARGS="tests/launch/test_kubernetes.py"
"""

import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

# The parts of jobset.x-k8s.io/v1alpha2, batch/v1 and core/v1 that a manifest here needs: a type, a
# tuple of allowed values, [of each element], {"*": of each value}, or fields, with ! if required.
RESOURCES = {"*": int}
POD = {
    "restartPolicy!": ("Never", "OnFailure"),
    "terminationGracePeriodSeconds": int,
    "nodeSelector": {"*": str},
    "tolerations": [
        {
            "key": str,
            "operator": ("Exists", "Equal"),
            "value": str,
            "effect": ("NoSchedule", "PreferNoSchedule", "NoExecute"),
        }
    ],
    "containers!": [
        {
            "name!": str,
            "image!": str,
            "command": [str],
            "args": [str],
            "env": [{"name!": str, "value": str}],
            "ports": [{"containerPort!": int, "name": str}],
            "resources": {"limits": RESOURCES, "requests": RESOURCES},
            "volumeMounts": [{"name!": str, "mountPath!": str, "readOnly": bool}],
        }
    ],
    "volumes": [
        {
            "name!": str,
            "persistentVolumeClaim": {"claimName!": str},
            "emptyDir": {"medium": ("", "Memory"), "sizeLimit": str},
        }
    ],
}
JOB = {
    "completionMode": ("Indexed", "NonIndexed"),
    "parallelism": int,
    "completions": int,
    "backoffLimit": int,
    "template!": {"metadata": {"annotations": {"*": str}}, "spec!": POD},
}
JOBSET = {
    "apiVersion!": ("jobset.x-k8s.io/v1alpha2",),
    "kind!": ("JobSet",),
    "metadata!": {"name!": str, "annotations": {"*": str}, "labels": {"*": str}},
    "spec!": {
        "failurePolicy": {"maxRestarts": int},
        "network": {"enableDNSHostnames": bool, "publishNotReadyAddresses": bool, "subdomain": str},
        "replicatedJobs!": [{"name!": str, "replicas": int, "template!": {"spec!": JOB}}],
    },
}


def misfits(value: Any, form: Any, where: str = "") -> list[str]:
    """Where a manifest is not of a form."""
    if isinstance(form, type):
        # A bool is an int to Python, not to Kubernetes.
        return [] if type(value) is form else [f"{where}: {form.__name__}, got {value!r}"]
    if isinstance(form, tuple):
        return [] if value in form else [f"{where}: one of {form}, got {value!r}"]
    if isinstance(form, list):
        if not isinstance(value, list) or not value:
            return [f"{where}: a list, got {value!r}"]
        return [m for n, v in enumerate(value) for m in misfits(v, form[0], f"{where}[{n}]")]
    if not isinstance(value, dict):
        return [f"{where}: fields, got {value!r}"]
    if "*" in form:
        return [m for k, v in value.items() for m in misfits(v, form["*"], f"{where}.{k}")]
    known = {name.rstrip("!"): part for name, part in form.items()}
    missing = {name[:-1] for name in form if name.endswith("!")} - value.keys()
    found = [f"{where}.{name}: missing" for name in sorted(missing)]
    for name, part in value.items():
        if name in known:
            found += misfits(part, known[name], f"{where}.{name}")
        else:
            found.append(f"{where}.{name}: no such field")
    return found


def fitting(text: str) -> dict[str, Any]:
    manifest = yaml.safe_load(text)
    assert misfits(manifest, JOBSET) == []
    return manifest


COMMON = ("--image=host/pdrec:1", "--claim=disk", "--mount=/shared")
GPU = ("render", "--device=gpu", "--hosts=4", *COMMON)
TPU = ("render", "--device=tpu", "--topology=4x8", "--slices=2", *COMMON)


def parts(manifest: dict[str, Any]) -> tuple[dict, dict, dict, dict]:
    (replicated,) = manifest["spec"]["replicatedJobs"]
    spec = replicated["template"]["spec"]
    pod = spec["template"]["spec"]
    return replicated, spec, pod, pod["containers"][0]


KINDS = {"string": str, "integer": int, "boolean": bool}


def violations(value: Any, schema: dict[str, Any], where: str = "") -> list[str]:
    """Where a value breaks a schema of the form that a cluster has (OpenAPI 3)."""
    if schema.get("x-kubernetes-int-or-string"):
        return [] if type(value) in (int, str) else [f"{where}: a number or text, got {value!r}"]
    if schema["type"] == "array":
        if not isinstance(value, list):
            return [f"{where}: a list, got {value!r}"]
        items = schema["items"]
        return [v for n, part in enumerate(value) for v in violations(part, items, f"{where}[{n}]")]
    if schema["type"] == "object":
        if not isinstance(value, dict):
            return [f"{where}: fields, got {value!r}"]
        # Of metadata a schema says no more; the server knows its fields itself.
        known, other = schema.get("properties", {}), schema.get("additionalProperties")
        found = [
            f"{where}.{name}: missing" for name in schema.get("required", []) if name not in value
        ]
        for name, part in value.items():
            form = known.get(name, other)
            if form:
                found += violations(part, form, f"{where}.{name}")
            elif known:
                found.append(f"{where}.{name}: no such field")
        return found
    if type(value) is not KINDS[schema["type"]]:
        return [f"{where}: {schema['type']}, got {value!r}"]
    fits = value in schema.get("enum", [value])
    if isinstance(value, str):
        fits &= re.search(schema.get("pattern", ""), value) is not None
        fits &= schema.get("minLength", 0) <= len(value) <= schema.get("maxLength", len(value))
    elif isinstance(value, int):
        fits &= schema.get("minimum", value) <= value
    return [] if fits else [f"{where}: not {value!r}"]


@pytest.mark.parametrize("flags", [GPU, TPU])
def test_a_cluster_accepts_it(
    flags: tuple[str, ...], launch: Callable[..., Any], job: tuple[str, ...]
) -> None:
    path = os.environ.get("PDREC_JOBSET_CRD")
    if not path:
        pytest.skip("PDREC_JOBSET_CRD is not set: no file of what a cluster knows")
    versions = yaml.safe_load(Path(path).read_text())["spec"]["versions"]
    (schema,) = (v["schema"]["openAPIV3Schema"] for v in versions if v["name"] == "v1alpha2")
    manifest = fitting(launch("kubernetes.sh", *flags, "--", *job).out)
    assert violations(manifest, schema) == []
    # That it would find something.
    parts(manifest)[1]["parallelism"] = "4"
    parts(manifest)[3]["img"] = parts(manifest)[3].pop("image")
    assert [v.rpartition(".")[2] for v in violations(manifest, schema)] == [
        "parallelism: integer, got '4'",
        "img: no such field",
    ]


def test_the_check_finds_what_is_wrong(launch: Callable[..., Any], job: tuple[str, ...]) -> None:
    good = launch("kubernetes.sh", *GPU, "--", *job).out
    for before, after, found in [
        ("kind: JobSet", "kind: Jobset", ".kind: one of ('JobSet',), got 'Jobset'"),
        ("completions: 4", "completion: 4", "spec.completion: no such field"),
        ("parallelism: 4", 'parallelism: "4"', "spec.parallelism: int, got '4'"),
        ("                  image: host/pdrec:1\n", "", "containers[0].image: missing"),
        ("enableDNSHostnames: true", "enableDNSHostnames: 1", "enableDNSHostnames: bool, got 1"),
    ]:
        assert before in good
        (misfit,) = misfits(yaml.safe_load(good.replace(before, after)), JOBSET)
        assert found in misfit


def test_gpu_pods_find_one_another_by_their_index(
    launch: Callable[..., Any], job: tuple[str, ...]
) -> None:
    done = launch("kubernetes.sh", *GPU, "--name=my-job", "--", *job)
    assert (done.status, done.err) == (0, "")
    manifest = fitting(done.out)
    replicated, spec, pod, container = parts(manifest)
    # A pod's host name is JOBSET-REPLICATED-JOB-POD, in the JobSet's own domain.
    first = f"my-job-{replicated['name']}-0-0.my-job"
    assert container["args"][:3] == [
        f"--coordinator={first}:12355",
        "--num_processes=4",
        "--process_id=$(JOB_COMPLETION_INDEX)",
    ]
    assert container["args"][3:] == list(job)
    assert container["command"] == ["python", "-m", "pdrec_jax.main"]
    assert container["resources"]["limits"] == {"nvidia.com/gpu": 8}
    assert spec["parallelism"] == spec["completions"] == 4
    assert (spec["completionMode"], spec["backoffLimit"]) == ("Indexed", 0)
    assert pod["restartPolicy"] == "Never"
    assert pod["nodeSelector"] == {"cloud.google.com/gke-accelerator": "nvidia-h100-80gb"}
    mounts = {mount["name"] for mount in container["volumeMounts"]}
    assert mounts == {volume["name"] for volume in pod["volumes"]}


def test_a_slice_gets_a_pod_for_each_host(launch: Callable[..., Any], job: tuple[str, ...]) -> None:
    done = launch("kubernetes.sh", *TPU, "--", *job)
    assert (done.status, done.err) == (0, "")
    replicated, spec, pod, container = parts(fitting(done.out))
    assert replicated["replicas"] == 2
    assert spec["parallelism"] == spec["completions"] == 4 * 8 // 4
    assert container["resources"]["limits"] == {"google.com/tpu": 4}
    assert pod["nodeSelector"] == {
        "cloud.google.com/gke-tpu-accelerator": "tpu-v5-lite-podslice",
        "cloud.google.com/gke-tpu-topology": "4x8",
    }
    assert container["args"] == list(job)


def test_arguments_reach_the_job_as_they_are(launch: Callable[..., Any]) -> None:
    odd = (
        "--config=c",
        "--workdir=/shared/r",
        "--a=: #{}[]&*!|>'\"%@`\\n",
        "--b=${PORT} $(X)",
        "-",
    )
    done = launch("kubernetes.sh", *GPU, "--", *odd)
    *_, container = parts(fitting(done.out))
    # Kubernetes reads $$(X) as the text $(X).
    assert [a.replace("$$(", "$(") for a in container["args"][3:]] == list(odd)


def test_apply_hands_over_what_render_prints(
    launch: Callable[..., Any], stub: Callable, job: tuple[str, ...]
) -> None:
    manifest = launch("kubernetes.sh", *GPU, "--", *job).out
    dry = launch("kubernetes.sh", "apply", *GPU[1:], "--namespace=lab", "--dry-run", "--", *job)
    command = "kubectl --namespace=lab apply --filename=-"
    assert dry.out == f"{command} <<'END'\n{manifest}END\n"
    log = stub("kubectl", 'echo "kubectl $*" >>"$LOG"; cat >>"$LOG"')
    assert launch("kubernetes.sh", "apply", *GPU[1:], "--namespace=lab", "--", *job).status == 0
    assert log.read_text() == f"{command}\n{manifest}"


@pytest.mark.parametrize(
    ("action", "commands"),
    [
        (
            "logs",
            [
                "kubectl logs --follow --tail=-1 --selector=jobset.sigs.k8s.io/jobset-name=j,"
                "jobset.sigs.k8s.io/job-index=0,batch.kubernetes.io/job-completion-index=0"
            ],
        ),
        (
            "status",
            [
                "kubectl get jobset j",
                "kubectl get pods --selector=jobset.sigs.k8s.io/jobset-name=j --output=wide",
            ],
        ),
        ("delete", ["kubectl delete jobset j"]),
    ],
)
def test_other_commands(action: str, commands: list[str], launch: Callable[..., Any]) -> None:
    done = launch("kubernetes.sh", action, "--name=j", "--dry-run")
    assert [" ".join(words) for words in done.commands] == commands


@pytest.mark.parametrize("workdir", ["/elsewhere/run", "/shared/../x", "/shared/a/.."])
def test_a_workdir_outside_the_shared_volume_is_refused(
    workdir: str, launch: Callable[..., Any]
) -> None:
    done = launch("kubernetes.sh", *GPU, "--", "--config=c", f"--workdir={workdir}")
    assert done.status == 2
    assert "--workdir: a directory in /shared is expected" in done.err


def test_a_slash_at_the_end_of_the_mount(launch: Callable[..., Any], job: tuple[str, ...]) -> None:
    done = launch("kubernetes.sh", *GPU, "--mount=/shared//", "--", *job)
    assert (done.status, done.err) == (0, "")
    assert done == launch("kubernetes.sh", *GPU, "--", *job)


def test_a_job_that_never_starts_again(launch: Callable[..., Any], job: tuple[str, ...]) -> None:
    done = launch("kubernetes.sh", *GPU, "--restarts=0", "--", *job)
    assert fitting(done.out)["spec"]["failurePolicy"] == {"maxRestarts": 0}


def test_dots_in_a_name_are_no_way_out(launch: Callable[..., Any]) -> None:
    done = launch("kubernetes.sh", *GPU, "--", "--config=c", "--workdir=/shared/a..b/..c/d..")
    assert (done.status, done.err) == (0, "")


@pytest.mark.parametrize(
    ("flags", "variable", "option", "device"),
    [
        (GPU, "PDREC_SLICES", "--slices", "tpu"),
        (GPU, "PDREC_TOPOLOGY", "--topology", "tpu"),
        (TPU, "PDREC_HOSTS", "--hosts", "gpu"),
        (TPU, "PDREC_PORT", "--port", "gpu"),
    ],
)
def test_an_option_of_the_other_device_is_refused(
    flags: tuple[str, ...], variable: str, option: str, device: str, launch: Callable[..., Any],
    job: tuple[str, ...],
) -> None:  # fmt: skip
    flags = tuple(flag for flag in flags if not flag.startswith(option))
    done = launch("kubernetes.sh", *flags, f"{option}=7", "--", *job)
    assert (done.status, done.out, done.err) == (2, "", f"error: {option}: for --device={device}\n")
    assert launch("kubernetes.sh", *flags, "--", *job, **{variable: "7"}) == done
