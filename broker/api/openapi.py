"""The OpenAPI 3.1 document, made from the table of operations and the models: nothing is said twice."""

import http
import inspect
import json
import re
from collections.abc import Iterable, Sequence
from importlib.metadata import version
from typing import Any

from pydantic import BaseModel, ConfigDict, Field
from pydantic.json_schema import models_json_schema

from broker.api.requests import MAX_KEY
from broker.api.route import Access, Answer, RouteSpec
from schemas.jobs import JobRequest, JobType, QuoteRequest

_REF = "#/components/schemas/{model}"
#: What any operation with a body, and any that asks who is there, may answer.
_OF_A_BODY, _OF_A_USER, _OF_AN_ADMIN = (408, 413, 422), (401, 429), (403,)
_ABOUT = """Send a job, watch it, fetch the file. Uploads and downloads go straight to the bucket by presigned URLs.

Errors are `application/problem+json` (RFC 9457) with a `code`, and `retryable`. A WebSocket at `/api/jobs/{job_id}/ws` says the same as
the event stream, as JSON. `RateLimit` headers say how many requests are left."""
_HEADERS = {
    "Idempotency-Key": "Draw one per job; sent again with the same job, it is the same job. 1 to 255 characters.",
    "Prefer": "`wait=N`: answer after up to N seconds (25 at most), as soon as there is something new.",
    "If-None-Match": "The `ETag` that you have; 304 if it is still right.",
    "Last-Event-ID": "The last `id` that you have seen; the stream goes on behind it.",
}
#: One job of each type, to begin with.
EXAMPLES: dict[str, dict[str, Any]] = {
    "framing": {
        "type": "framing",
        "input_key": "uploads/3f0c/clip.mp4",
        "params": {
            "crop_keyframes": [
                {"time": 0, "x": 0, "y": 0, "width": 405, "height": 720},
                {"time": 5, "x": 875, "y": 0, "width": 405, "height": 720},
            ]
        },
    },
    "overlay": {
        "type": "overlay",
        "input_key": "uploads/3f0c/clip.mp4",
        "params": {
            "effect_type": "dark_overlay",
            "highlight_regions": [
                {
                    "start_time": 1.0,
                    "end_time": 3.5,
                    "keyframes": [
                        {"time": 1.0, "x": 640, "y": 360, "radius_x": 60, "radius_y": 110},
                        {"time": 3.5, "x": 820, "y": 380, "radius_x": 60, "radius_y": 110},
                    ],
                }
            ],
            "text_layers": [
                {"text": "Number 7", "x": 40, "y": 40, "start_time": 1.0, "end_time": 3.5}
            ],
        },
    },
    "annotate": {
        "type": "annotate",
        "input_key": "uploads/3f0c/match.mp4",
        "params": {
            "clips": [
                {
                    "start_time": 62.4,
                    "end_time": 70.0,
                    "name": "Counter-attack",
                    "rating": 5,
                    "tags": ["assist"],
                },
                {"start_time": 918.0, "end_time": 926.5, "name": "Save"},
            ]
        },
    },
    "multi_clip": {
        "type": "multi_clip",
        "params": {
            "clips": [
                {"input_key": "uploads/3f0c/first.mp4", "end_time": 4.0},
                {"input_key": "uploads/9a1b/second.mp4", "start_time": 2.0, "end_time": 7.5},
            ],
            "transition": {"type": "dissolve", "duration": 0.5},
        },
    },
    "upscale": {
        "type": "upscale",
        "input_key": "uploads/3f0c/clip.mp4",
        "params": {
            "model": "realesr-animevideov3",
            "end_time": 5.0,
            "output_width": 1080,
            "output_height": 1920,
        },
    },
}
#: Where in an answer the ids are that paths ask for.
_IDS = {
    "job_id": "$response.body#/job_id",
    "upload_id": "$response.body#/upload_id",
    "webhook_id": "$response.body#/id",
    "key_id": "$response.body#/id",
}
_ANSWERED = {
    202: ("Location", "Retry-After", "ETag", "Idempotent-Replayed", "Preference-Applied"),
    302: ("Location",),
    304: ("ETag",),
}


class FieldProblem(BaseModel):
    pointer: str = Field(description="JSON pointer to the field.")
    detail: str


class Problem(BaseModel):
    """What went wrong, as RFC 9457 says it."""

    model_config = ConfigDict(extra="forbid")

    type: str
    title: str
    status: int
    detail: str
    code: str
    retryable: bool = Field(description="Whether the same request may succeed later.")
    request_id: str
    errors: list[FieldProblem] = []


def document(operations: Sequence[RouteSpec], root_path: str = "") -> dict[str, Any]:
    """Returns the whole document, for a broker that is served below `root_path`."""
    taken: dict[tuple[type[BaseModel], Any], None] = {(Problem, "serialization"): None}
    for operation in operations:
        if operation.body is not None:
            taken[(operation.body, "validation")] = None
        taken |= dict.fromkeys(
            (answer, "serialization")
            for answer in operation.answers.values()
            if isinstance(answer, type)
        )
    taken |= dict.fromkeys((kind.params_model, "validation") for kind in JobType)
    names, definitions = models_json_schema(list(taken), ref_template=_REF)
    schemas = definitions["$defs"]
    for schema in schemas.values():
        _tell_defaults(schema)
    for model in (JobRequest, QuoteRequest):
        _one_of_each_type(schemas, model.__name__)
    paths: dict[str, dict[str, Any]] = {}
    for operation in operations:
        paths.setdefault(operation.path, {})[operation.method.lower()] = _operation(
            operation, names
        )
    _link(operations, paths)
    return {
        "openapi": "3.1.0",
        "info": {"title": "Reelbroker", "version": version("reelbroker"), "description": _ABOUT},
        "servers": [{"url": root_path or "/"}],
        "security": [{"bearer": []}],
        "tags": [{"name": tag} for tag in dict.fromkeys(operation.tag for operation in operations)],
        "paths": paths,
        "components": {
            "schemas": schemas,
            "securitySchemes": {
                "bearer": {
                    "type": "http",
                    "scheme": "bearer",
                    "description": "An API key, or a JWT.",
                }
            },
        },
    }


def _operation(operation: RouteSpec, names: Any) -> dict[str, Any]:
    summary, _, rest = inspect.cleandoc(operation.endpoint.__doc__ or "").partition("\n\n")
    described: dict[str, Any] = {
        "operationId": _id(operation),
        "summary": " ".join(summary.replace("`", "").split()),
        "tags": [operation.tag],
        "parameters": [*_parameters(operation)],
        "responses": {str(status): body for status, body in _responses(operation, names)},
    }
    if rest:
        described["description"] = " ".join(rest.split())
    if operation.access is Access.PUBLIC:
        described["security"] = []
    if operation.body is not None:
        content = {"schema": names[(operation.body, "validation")]}
        if issubclass(operation.body, JobRequest):
            content["examples"] = {name: {"value": value} for name, value in EXAMPLES.items()}
        described["requestBody"] = {"required": True, "content": {"application/json": content}}
    if operation.form is not None:
        content = {"schema": _form(operation.form)}
        described["requestBody"] = {"required": True, "content": {"multipart/form-data": content}}
    return described


def _form(model: type[BaseModel]) -> dict[str, Any]:
    """Describes a form: its fields, none of which can be null, and beside them the video."""
    fields = model.model_json_schema(mode="validation", ref_template=_REF)
    _tell_defaults(fields)
    properties = {name: _without_null(field) for name, field in fields["properties"].items()}
    properties["video"] = {"type": "string", "contentMediaType": "application/octet-stream"}
    return fields | {"properties": properties, "required": ["video"]}


def _tell_defaults(schema: dict[str, Any]) -> None:
    """Takes the defaults out of a model's fields, and names them in the descriptions.

    Generators of types, openapi-typescript among them, read a field with a default as one that is
    always there. In a request nobody has to send it.
    """
    for name, field in schema.get("properties", {}).items():
        default = field.pop("default", None)
        if name not in schema.get("required", ()) and default not in (None, "", [], {}):
            told = f"Default: `{json.dumps(default)}`."
            field["description"] = " ".join(filter(None, (field.get("description"), told)))


def _id(operation: RouteSpec) -> str:
    return operation.method.lower() + re.sub(
        "[^a-z]+", "_", operation.path.removeprefix("/api")
    ).rstrip("_")


def _link(operations: Sequence[RouteSpec], paths: dict[str, dict[str, Any]]) -> None:
    """Says what may be done next with what an operation answers: wherever its id is asked for."""
    for operation in operations:
        for status, answer in operation.answers.items():
            for name, source in _ids_in(operation, answer):
                followers = [
                    other for other in operations if re.findall(r"\{(\w+)\}", other.path) == [name]
                ]
                paths[operation.path][operation.method.lower()]["responses"][str(status)][
                    "links"
                ] = {
                    _id(other): {"operationId": _id(other), "parameters": {name: source}}
                    for other in followers
                    if other.method != "PUT"
                }


def _ids_in(operation: RouteSpec, answer: Answer) -> Iterable[tuple[str, str]]:
    """Yields (name in paths, where it is) for the id of what an operation makes."""
    if operation.method != "POST" or not isinstance(answer, type):
        return
    for name, source in _IDS.items():
        made_here = (
            name in ("job_id", "upload_id") or operation.path == f"/api/{name.removesuffix('_id')}s"
        )
        if made_here and source.rpartition("/")[2] in answer.model_fields:
            yield name, source


def _parameters(operation: RouteSpec) -> Iterable[dict[str, Any]]:
    for name in re.findall(r"\{(\w+)\}", operation.path):
        schema: dict[str, Any] = {"type": "string", "minLength": 1}
        if name == "type":
            schema["enum"] = [kind.value for kind in JobType]
        if operation.method == "PUT":
            schema["format"] = "uuid"
        yield {"name": name, "in": "path", "required": True, "schema": schema}
    if operation.query is not None:
        fields = operation.query.model_json_schema(mode="validation", ref_template=_REF)
        definitions = fields.get("$defs", {})
        for name, field in fields["properties"].items():
            schema = _without_null(field)
            if "items" in schema and "$ref" in schema["items"]:
                schema = schema | {"items": definitions[schema["items"]["$ref"].rpartition("/")[2]]}
            yield {
                "name": name,
                "in": "query",
                "required": name in fields.get("required", ()),
                "schema": schema,
                "style": "form",
                "explode": False,
            }
    for name in operation.headers:
        limits = {"minLength": 1, "maxLength": MAX_KEY} if name == "Idempotency-Key" else {}
        schema = {"type": "string"} | limits
        yield {"name": name, "in": "header", "schema": schema, "description": _HEADERS[name]}


def _responses(operation: RouteSpec, names: Any) -> Iterable[tuple[int, dict[str, Any]]]:
    for status, answer in operation.answers.items():
        told: dict[str, Any] = {"description": http.HTTPStatus(status).phrase}
        if isinstance(answer, str):
            told["content"] = {answer: {}}
        elif answer is not None:
            told["content"] = {"application/json": {"schema": names[(answer, "serialization")]}}
        if headers := _ANSWERED.get(status):
            told["headers"] = {name: {"schema": {"type": "string"}} for name in headers}
        yield status, told
    problems = {*operation.problems}
    problems |= {*_OF_A_BODY} if operation.body or operation.form else set()
    problems |= {415} if operation.form else set()
    problems |= {*_OF_A_USER} if operation.access is not Access.PUBLIC else set()
    problems |= {*_OF_AN_ADMIN} if operation.access is Access.ADMIN else set()
    for status in sorted(problems):
        schema = names[(Problem, "serialization")]
        yield (
            status,
            {
                "description": http.HTTPStatus(status).phrase,
                "content": {"application/problem+json": {"schema": schema}},
            },
        )


def _one_of_each_type(schemas: dict[str, Any], name: str) -> None:
    """Says that `params` are those of the `type`, which the model checks and its schema does not know."""
    model = schemas[name]
    mapping = {}
    for kind in JobType:
        params = {"$ref": _REF.format(model=kind.params_model.__name__)}
        properties = model["properties"] | {
            "type": {"const": kind.value, "type": "string"},
            "params": params,
        }
        required = ["type"]
        if kind is not JobType.MULTI_CLIP:
            required.append("input_key")
            properties["input_key"] = _without_null(properties["input_key"])
        if kind in (JobType.ANNOTATE, JobType.MULTI_CLIP):
            required.append("params")
        words = {"title": f"{name} ({kind.value})", "properties": properties, "required": required}
        schemas[f"{name}_{kind.value}"] = model | words
        mapping[kind.value] = _REF.format(model=f"{name}_{kind.value}")
    schemas[name] = {
        "oneOf": [{"$ref": ref} for ref in mapping.values()],
        "discriminator": {"propertyName": "type", "mapping": mapping},
    }


def _without_null(schema: dict[str, Any]) -> dict[str, Any]:
    """Returns the schema of a field that may be left out, and cannot be null."""
    kinds = [kind for kind in schema.get("anyOf", []) if kind.get("type") != "null"]
    return kinds[0] if len(kinds) == 1 else schema
