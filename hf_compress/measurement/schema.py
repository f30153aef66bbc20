"""The JSON schema of records, for whoever reads them without hf_compress.

Level: base.
"""

from __future__ import annotations

from typing import Any

from hf_compress.measurement.record import ROLES, SCHEMA_VERSION


def record_schema() -> dict[str, Any]:
    """Return the JSON schema (draft 2020-12) of a record of this version."""
    mapping, text = {"type": "object"}, {"type": "string"}
    measurement = {
        "type": "object",
        "properties": {
            "name": {**text, "description": "what was measured, such as latency, accuracy, bytes_on_disk"},
            "value": {"type": "number", "description": "the number; of timed quantities the median of samples"},
            "unit": {**text, "description": "such as ms, bytes, fraction, parameters; empty where there is none"},
            "conditions": {**mapping, "description": "what it depends on: batch_size, length, device, threads ..."},
            "samples": {"type": "array", "items": {"type": "number"}},
        },
        "required": ["name", "value", "unit", "conditions", "samples"],
        "additionalProperties": False,
    }
    properties = {
        "schema_version": {"const": SCHEMA_VERSION},
        "model": {**text, "description": "short name"},
        "role": {"enum": list(ROLES)},
        "measurements": {"type": "array", "items": measurement},
        "environment": {
            **mapping,
            "description": "processor, instructions, cores, threads, device, os, python, versions",
        },
        "dataset": {**mapping, "description": "id, revision, split and samples behind the quality; empty if none"},
        "seed": {"type": ["integer", "null"]},
        "command": {**text, "description": "that made the record"},
        "method": {**mapping, "description": "what was done to the model, and what it is made of"},
        "notes": {"type": "array", "items": text},
    }
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": f"hf_compress record, version {SCHEMA_VERSION}",
        "type": "object",
        "properties": properties,
        "required": list(properties),
        "additionalProperties": False,
    }
