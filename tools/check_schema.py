#!/usr/bin/env python3
"""Holds manifests against what `ferrotype schema` printed.

usage: check_schema.py SCHEMA MANIFEST …        (in an environment with tools/deploy.txt)

SCHEMA has to be a JSON schema, by the metaschema of its own draft, and each MANIFEST (TOML) has to fit it. Exit code 1 when anything is wrong; every
fault is printed.
"""

import json
import sys
import tomllib

import jsonschema


def faults(error):
    """(place, message) of an error; of a stage, what its own kind says, where it names one."""
    by_kind = {}
    for below in error.context if error.validator == "oneOf" else []:
        by_kind.setdefault(below.schema_path[0], []).append(below)
    own = [found for found in by_kind.values() if not any(list(below.path) == ["uses"] for below in found)]
    if len(own) != 1:
        yield ".".join(map(str, error.absolute_path)), error.message
        return
    for below in own[0]:
        yield ".".join(map(str, below.absolute_path)), below.message


def main():
    schema_file, *manifests = sys.argv[1:]
    with open(schema_file, encoding="utf-8") as file:
        schema = json.load(file)
    draft = jsonschema.validators.validator_for(schema)
    try:
        draft.check_schema(schema)
    except jsonschema.SchemaError as error:
        sys.exit(f"{schema_file}: {error.json_path}: {error.message}")
    failed = False
    for manifest in manifests:
        with open(manifest, "rb") as file:
            table = tomllib.load(file)
        for error in draft(schema).iter_errors(table):
            failed = True
            for place, message in faults(error):
                print(f"{manifest}: {place}: {message}")
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
