"""Writes ``kserve.json``: the shapes of KServe's objects, as far as our manifests have parts of them.

From the classes of the published package ``kserve`` and of the package ``kubernetes``, both of which are generated from
the types that the custom resource definitions are generated from:

    pip download --no-deps kserve==0.21.0 && python -m zipfile -e kserve-*.whl unpacked
    python tests/compat/kserve_schema/make_schema.py unpacked/kserve/models 0.21.0

Objects that no manifest of ours has are any object; a member that is unknown is an error everywhere else.
"""

from __future__ import annotations

import ast
import json
import re
import sys
from pathlib import Path
from typing import Any

import kubernetes
from kubernetes import client

ROOTS = {"InferenceService": "V1beta1InferenceService", "ServingRuntime": "V1alpha1ServingRuntime"}
KEPT = {
    *ROOTS.values(), "V1beta1InferenceServiceSpec", "V1beta1PredictorSpec", "V1beta1ModelSpec", "V1beta1ModelFormat",
    "V1alpha1ServingRuntimeSpec", "V1alpha1SupportedModelFormat",
}  # fmt: skip
OF_KUBERNETES = {
    "V1ObjectMeta", "V1Container", "V1EnvVar", "V1ContainerPort", "V1Probe", "V1HTTPGetAction", "V1SecurityContext",
    "V1Capabilities",
}  # fmt: skip
SIMPLE = {
    "str": {"type": "string"}, "int": {"type": "integer"}, "bool": {"type": "boolean"}, "float": {"type": "number"},
    "dict(str, str)": {"type": "object", "additionalProperties": {"type": "string"}},
    "object": {}, "datetime": {"type": "string"},
}  # fmt: skip


def shape(type_: str) -> dict[str, Any]:
    listed = re.fullmatch(r"list\[(.+)\]", type_)
    if listed:
        return {"type": "array", "items": shape(listed[1])}
    if type_ in KEPT | OF_KUBERNETES:
        return {"$ref": f"#/$defs/{type_}"}
    return SIMPLE.get(type_, {"type": "object"})


def file_of(type_: str, folder: Path) -> Path:
    name = re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", "_", type_).lower() + ".py"
    return folder / name.replace("v_1", "v1")


def read(path: Path) -> dict[str, Any]:
    """The schema of a generated class."""
    text = path.read_text()
    tables = {
        node.targets[0].id: ast.literal_eval(node.value)
        for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.Assign)
        and isinstance(node.targets[0], ast.Name)
        and node.targets[0].id in {"openapi_types", "attribute_map"}
    }
    keys = tables["attribute_map"]
    required = sorted({keys[name] for name in re.findall(r"Invalid value for `(\w+)`, must not be `None`", text)})
    return {
        "type": "object",
        "properties": {keys[name]: shape(type_) for name, type_ in tables["openapi_types"].items()},
        "additionalProperties": False,
        **({"required": required} if required else {}),
    }


def ask(type_: str) -> dict[str, Any]:
    """The schema of a class of Kubernetes; null is as good as nothing, and other objects are any object."""
    described = getattr(client, type_).model_json_schema(by_alias=True)
    properties = {}
    for name, value in described["properties"].items():
        found = next(each for each in value.get("anyOf", [value]) if each.get("type") != "null")
        properties[name] = narrow(found)
    required = {"required": described["required"]} if "required" in described else {}
    return {"type": "object", "properties": properties, "additionalProperties": False, **required}


def narrow(value: dict[str, Any]) -> dict[str, Any]:
    if "$ref" in value:
        return shape(value["$ref"].rpartition("/")[2])
    if value.get("type") == "array":
        return {"type": "array", "items": narrow(value["items"])}
    return {key: value[key] for key in ("type",) if key in value}


def main(folder: str, version: str) -> None:
    definitions = {type_: read(file_of(type_, Path(folder))) for type_ in sorted(KEPT)}
    definitions |= {type_: ask(type_) for type_ in sorted(OF_KUBERNETES)}
    # Written as numbers or names; the class takes anything.
    definitions["V1HTTPGetAction"]["properties"]["port"] = {"type": ["integer", "string"]}
    schema = {
        "$comment": f"Made by make_schema.py from kserve {version} and kubernetes {kubernetes.__version__}.",
        "version": version,
        "kinds": {kind: {"$ref": f"#/$defs/{type_}"} for kind, type_ in ROOTS.items()},
        "$defs": definitions,
    }
    (Path(__file__).parent / "kserve.json").write_text(json.dumps(schema, indent=1) + "\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
