#!/usr/bin/env python3
"""Checks what lies in deploy/, without a cluster and without a container engine.

usage: check_deploy.py BINARY [--kubernetes VERSION …]        (in an environment with tools/deploy.txt)

deploy/kubernetes.yaml: every object against Kubernetes' schemas of each version, unknown fields refused; that its parts fit each
other (names, numbers of workers, writable folders, no value of a secret); that BINARY takes the words of its command, and the manifest in it, which
it plans with a workdir and a list of this machine. deploy/Containerfile: hadolint, and that its parts fit each other.

Then each check is shown a fault that it must find. Exit code 1 when anything is wrong; every fault is printed.
"""

import argparse
import contextlib
import copy
import os
import re
import subprocess
import sys
import tempfile
import tomllib

import kubernetes_validate
import yaml

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
OBJECTS = os.path.join(ROOT, "deploy", "kubernetes.yaml")
CONTAINER = os.path.join(ROOT, "deploy", "Containerfile")
# podFailurePolicy is stable since 1.31, backoffLimitPerIndex since 1.33; the last is the newest that kubernetes-validate has.
VERSIONS = ["1.31", "1.33", "1.35", kubernetes_validate.latest_version()]
# What the cluster itself sets in a pod of an Indexed Job.
GIVEN = {"JOB_COMPLETION_INDEX"}
# What a download asks for, so that a list of one row stands for the real one.
LIST = "url\tcaption\nhttp://example.com/a.jpg\tA red teapot on a table\n"


class Strict(yaml.SafeLoader):
    """YAML in which a key that is there twice is an error, as it is to a strict API server."""

    def construct_mapping(self, node, deep=False):
        keys = [self.construct_object(key, deep=deep) for key, _ in node.value]
        twice = sorted({str(key) for key in keys if keys.count(key) > 1})
        if twice:
            raise yaml.constructor.ConstructorError(None, None, f"twice: {', '.join(twice)}", node.start_mark)
        return super().construct_mapping(node, deep)


def load(text):
    return [document for document in yaml.load_all(text, Loader=Strict) if document is not None]


def of_kind(objects, kind):
    return [found for found in objects if found.get("kind") == kind]


def schema_faults(objects, versions):
    for version in versions:
        for found in objects:
            name = f"{found.get('kind')} {found.get('metadata', {}).get('name')}"
            try:
                kubernetes_validate.validate(found, version, strict=True)
            except kubernetes_validate.ValidationError as error:
                yield f"{name}, Kubernetes {version}: {'.'.join(str(step) for step in error.path)}: {error.message}"
            except (kubernetes_validate.SchemaNotFoundError, kubernetes_validate.VersionNotSupportedError) as error:
                yield f"{name}, Kubernetes {version}: {error.message}"


def container_of(job):
    return job["spec"]["template"]["spec"]["containers"][0]


def manifests(objects):
    """(name of the ConfigMap, its manifest)"""
    for found in of_kind(objects, "ConfigMap"):
        for name, text in found.get("data", {}).items():
            if name.endswith(".toml"):
                yield found["metadata"]["name"], text


def consistency_faults(objects):
    """What no schema says: whether the parts fit each other."""
    jobs = of_kind(objects, "Job")
    if len(jobs) != 1:
        yield f"{len(jobs)} Jobs; one was expected"
        return
    if of_kind(objects, "Secret"):
        yield "a Secret: values of secrets do not belong in this file"
    spec = jobs[0]["spec"]
    pod = spec["template"]["spec"]
    container = container_of(jobs[0])

    if spec.get("completionMode") != "Indexed":
        yield "completionMode is not Indexed"
    if spec.get("completions") != spec.get("parallelism"):
        yield f"completions {spec.get('completions')} and parallelism {spec.get('parallelism')} differ"
    if pod.get("restartPolicy") != "Never":
        yield "podFailurePolicy needs restartPolicy: Never"
    rules = spec.get("podFailurePolicy", {}).get("rules", [])
    on_code = {code: rule["action"] for rule in reversed(rules) for code in rule.get("onExitCodes", {}).get("values", [])}
    if on_code != {2: "FailJob", 130: "Ignore"}:
        yield f"exit codes 2 and 130 should end the Job and be ignored, not {on_code}"
    if not any(c["type"] == "DisruptionTarget" for rule in rules if rule["action"] == "Ignore" for c in rule.get("onPodConditions", [])):
        yield "pods that are drained or preempted count as failures"
    for rule in rules:
        if "onExitCodes" in rule and rule["onExitCodes"].get("containerName") != container["name"]:
            yield f"a rule speaks of the container {rule['onExitCodes'].get('containerName')}, which is not there"

    words = " ".join(container["args"])
    share = re.search(r"--prefer (\S+)/(\d+)$", words)
    if not share or share[1] != "$(JOB_COMPLETION_INDEX)" or int(share[2]) != spec.get("completions"):
        yield f"`{words}` should end in --prefer $(JOB_COMPLETION_INDEX)/{spec.get('completions')}"
    known = GIVEN | {variable["name"] for variable in container.get("env", [])}
    # $$(NAME) is not one.
    for word in [*container["command"], *container["args"]]:
        for name in re.findall(r"(?<!\$)\$\(([^)]*)\)", word):
            if name not in known:
                yield f"$({name}) names no variable of the container: Kubernetes would leave it as it is"
    for variable in container.get("env", []):
        if re.search(r"SECRET|TOKEN|KEY", variable["name"]) and "secretKeyRef" not in variable.get("valueFrom", {}):
            yield f"{variable['name']} is written in the file"

    volumes = {volume["name"]: volume for volume in pod.get("volumes", [])}
    mounts = {mount["mountPath"]: mount for mount in container.get("volumeMounts", [])}
    for mount in mounts.values():
        if mount["name"] not in volumes:
            yield f"no volume is called {mount['name']}"
    writable = [path for path, mount in mounts.items() if not mount.get("readOnly") and "emptyDir" in volumes.get(mount["name"], {})]
    limits = (container.get("securityContext", {}), pod.get("securityContext", {}))
    if not limits[0].get("readOnlyRootFilesystem") or not limits[1].get("runAsNonRoot") or limits[0].get("allowPrivilegeEscalation", True):
        yield "the container may write to its own files, be root, or become root"

    def is_writable(path):
        return any(path == folder or path.startswith(folder + "/") for folder in writable)

    home = [variable["value"] for variable in container.get("env", []) if variable["name"] == "HOME"]
    for path in [*home, "/tmp"]:
        if not is_writable(path):
            yield f"{path} is not writable"
    found = dict(manifests(objects))
    mounted = {volumes[m["name"]].get("configMap", {}).get("name"): path for path, m in mounts.items() if m["name"] in volumes}
    for name, text in found.items():
        table = tomllib.loads(text)["pipeline"]
        if not table["workdir"].startswith("s3://"):
            yield f"workdir = {table['workdir']}: pods share nothing but a store"
        if not is_writable(table.get("scratch", "")):
            yield f"scratch = {table.get('scratch')} is not below a writable volume ({', '.join(writable)})"
        if name not in mounted:
            yield f"the ConfigMap {name} is mounted nowhere"
    if not any(container["args"][1].startswith(f"{path}/") for path in mounted.values() if path):
        yield f"{container['args'][1]} lies in no mounted ConfigMap"


def worker_faults(objects, binary):
    """Whether the binary takes the words of `args`."""
    container = container_of(of_kind(objects, "Job")[0])
    words = [word.replace("$(JOB_COMPLETION_INDEX)", "7") for word in container["args"][2:]]
    with tempfile.TemporaryDirectory() as folder:
        # What cannot be read is code 2, as a fault of the command line is; but only the latter shows the usage.
        ended = subprocess.run([binary, "worker", f"{folder}/absent.toml", *words], capture_output=True, text=True, check=False, timeout=60)
    if container["command"] != ["ferrotype"] or container["args"][0] != "worker" or "absent.toml: cannot be read" not in ended.stderr:
        yield f"`{' '.join(container['command'] + container['args'])}` is not taken: {ended.stderr.strip()}"


def plan_faults(objects, binary):
    """Has the binary plan the manifest, with a workdir and a list of this machine."""
    for name, text in manifests(objects):
        with tempfile.TemporaryDirectory() as folder:
            manifest, rows = os.path.join(folder, "pipeline.toml"), os.path.join(folder, "list.tsv")
            for path, content in [(manifest, text), (rows, LIST)]:
                with open(path, "w", encoding="utf-8") as file:
                    file.write(content)
            command = [binary, "plan", manifest, "--set", f"pipeline.workdir={folder}/work", "--set", f"pipeline.scratch={folder}/scratch"]
            for stage, table in tomllib.loads(text).get("stage", {}).items():
                if table.get("uses") == "download":
                    command += ["--set", f"stage.{stage}.urls={rows}"]
            ended = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
            if ended.returncode != 0:
                yield f"{name}: `ferrotype plan` says {ended.returncode}: {(ended.stderr or ended.stdout).strip()}"


def hadolint_faults(path):
    binary = os.path.join(os.path.dirname(sys.executable), "hadolint")
    ended = subprocess.run([binary, "--no-color", "--failure-threshold", "style", path], capture_output=True, text=True, check=False, timeout=120)
    if ended.returncode != 0:
        yield from (ended.stdout + ended.stderr).strip().splitlines()


def container_faults(text, objects):
    """What no linter knows: that the user is the pods', and that libtorch lies where the binary was linked to look for it."""
    last = text[[match.start() for match in re.finditer(r"^FROM ", text, re.MULTILINE)][-1]:]
    user = re.search(r"^USER (\d+)(?::(\d+))?$", last, re.MULTILINE)
    pod = of_kind(objects, "Job")[0]["spec"]["template"]["spec"].get("securityContext", {})
    if not user or int(user[1]) != pod.get("runAsUser"):
        yield f"the image's user is {user and user[1]}, the pods' {pod.get('runAsUser')}"
    libtorch = re.search(r"\bLIBTORCH=(\S+)", text)
    if not libtorch or f"COPY --from=build {libtorch[1]}/lib {libtorch[1]}/lib" not in last:
        yield "libtorch is not copied to the folder of the same name as it was built with"


def own_faults(objects, container, binary):
    """Faults that the checks above must find; what they overlook is a fault of theirs."""
    def changed(change):
        other = copy.deepcopy(objects)
        change(other, of_kind(other, "Job")[0]["spec"])
        return other

    def rename(table, old, new):
        table[new] = table.pop(old)

    def in_manifest(other, old, new):
        data = of_kind(other, "ConfigMap")[0]["data"]
        assert old in data["pipeline.toml"]
        data["pipeline.toml"] = data["pipeline.toml"].replace(old, new)

    def of_schema(other):
        return schema_faults(other, VERSIONS)

    cases = [
        ("backoffLimitPerIndex misspelt", of_schema, lambda _, job: rename(job, "backoffLimitPerIndex", "backoffLimitPerIndx")),
        ("podFailurePolicy misspelt", of_schema, lambda _, job: rename(job, "podFailurePolicy", "podFailurePolice")),
        ("onExitCodes misspelt", of_schema, lambda _, job: rename(job["podFailurePolicy"]["rules"][0], "onExitCodes", "onExitCode")),
        ("an unknown field of the container", of_schema, lambda other, _: container_of(of_kind(other, "Job")[0]).update(resource={})),
        ("text for a number", of_schema, lambda _, job: job.update(completions="64")),
        ("fewer workers than shares", consistency_faults, lambda _, job: job.update(completions=8, parallelism=8)),
        ("a variable that is not there", consistency_faults, lambda other, _: container_of(of_kind(other, "Job")[0])["args"].insert(2, "$(NODE)")),
        ("a scratch folder that cannot be written", consistency_faults, lambda other, _: in_manifest(other, "/scratch/workdir", "/data")),
        ("a word that the worker does not know", lambda other: worker_faults(other, binary), lambda other, _: container_of(of_kind(other, "Job")[0])["args"].insert(2, "--prefers")),
        ("a key of the manifest misspelt", lambda other: plan_faults(other, binary), lambda other, _: in_manifest(other, "min_side", "min_sid")),
        ("another user", lambda other: container_faults(container, other), lambda _, job: job["template"]["spec"]["securityContext"].update(runAsUser=1)),
    ]
    for what, check, change in cases:
        if not any(True for _ in check(changed(change))):
            yield f"not found: {what}"
    with contextlib.suppress(yaml.YAMLError):
        load("a: 1\na: 2\n")
        yield "not found: a key that is there twice"
    with tempfile.NamedTemporaryFile("w", suffix=".Containerfile") as file:
        file.write(container.replace("\nUSER 10001:10001", "\nUSR 10001"))
        file.flush()
        if not any(True for _ in hadolint_faults(file.name)):
            yield "not found: an instruction misspelt"


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("binary", help="ferrotype")
    parser.add_argument("--kubernetes", nargs="+", metavar="VERSION", default=VERSIONS, help=f"whose schemas count [{' '.join(VERSIONS)}]")
    arguments = parser.parse_args()
    with open(OBJECTS, encoding="utf-8") as file:
        objects = load(file.read())
    with open(CONTAINER, encoding="utf-8") as file:
        container = file.read()
    checks = [
        (f"kubernetes.yaml: schemas of {', '.join(arguments.kubernetes)}", lambda: schema_faults(objects, arguments.kubernetes)),
        ("kubernetes.yaml: its parts fit", lambda: consistency_faults(objects)),
        ("kubernetes.yaml: its command", lambda: worker_faults(objects, arguments.binary)),
        ("kubernetes.yaml: its manifest", lambda: plan_faults(objects, arguments.binary)),
        ("Containerfile: hadolint", lambda: hadolint_faults(CONTAINER)),
        ("Containerfile: its parts fit", lambda: container_faults(container, objects)),
        ("these checks find faults", lambda: own_faults(objects, container, arguments.binary)),
    ]
    failed = False
    for name, check in checks:
        faults = list(check())
        failed |= bool(faults)
        print(f"{'FAILED' if faults else 'ok    '}  {name}", flush=True)
        for fault in faults:
            print("        " + fault.replace("\n", "\n        "))
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
