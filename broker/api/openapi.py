"""The OpenAPI 3.1 document, built from the table of routes and the models."""

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
#: The problems of every route with a body, of every authenticated route, and of admins' routes.
_OF_A_BODY, _OF_A_USER, _OF_AN_ADMIN = (408, 413, 422), (401, 429), (403,)
_ABOUT = """Submit a job, watch it, download the file. Upload to and download from the bucket by
presigned URLs.

Errors are `application/problem+json` (RFC 9457) with a `code` and `retryable`. A WebSocket at
`/api/jobs/{job_id}/ws` sends the frames of the event stream as JSON. `RateLimit` headers hold the
number of requests that are left."""
_HEADERS = {
    "Idempotency-Key": "A key of your own for each job, of 1 to 255 characters. A second request "
    "with the same key and job returns the same job.",
    "Prefer": "`wait=N`: wait up to N seconds (25 at most) for a change.",
    "If-None-Match": "The `ETag` that you have. The answer is 304 if it is current.",
    "Last-Event-ID": "The last `id` that you have. The stream continues after it.",
}
_CROP = [
    {"time": 0, "x": 0, "y": 0, "width": 405, "height": 720},
    {"time": 5, "x": 875, "y": 0, "width": 405, "height": 720},
]
_HIGHLIGHT = [
    {"time": 1.0, "x": 640, "y": 360, "radius_x": 60, "radius_y": 110},
    {"time": 3.5, "x": 820, "y": 380, "radius_x": 60, "radius_y": 110},
]
_SHOWN = {"start_time": 1.0, "end_time": 3.5}
_CLIPS = [
    {"input_key": "uploads/3f0c/first.mp4", "end_time": 4.0},
    {"input_key": "uploads/9a1b/second.mp4", "start_time": 2.0, "end_time": 7.5},
]
_PARAMS: dict[str, dict[str, Any]] = {
    "framing": {"crop_keyframes": _CROP},
    "overlay": {
        "effect_type": "dark_overlay",
        "highlight_regions": [{**_SHOWN, "keyframes": _HIGHLIGHT}],
        "text_layers": [{**_SHOWN, "text": "Number 7", "x": 40, "y": 40}],
    },
    "annotate": {
        "clips": [
            {"start_time": 62.4, "end_time": 70.0, "name": "Counter-attack", "rating": 5},
            {"start_time": 918.0, "end_time": 926.5, "name": "Save", "tags": ["keeper"]},
        ]
    },
    "multi_clip": {"clips": _CLIPS, "transition": {"type": "dissolve", "duration": 0.5}},
    "upscale": {"model": "realesr-animevideov3", "end_time": 5.0},
}
#: One job of each type.
EXAMPLES: dict[str, dict[str, Any]] = {
    kind: {"type": kind, "params": params}
    | ({} if kind == "multi_clip" else {"input_key": "uploads/3f0c/clip.mp4"})
    for kind, params in _PARAMS.items()
}
#: Where an answer holds the ids that paths need.
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
    """An error (RFC 9457)."""

    model_config = ConfigDict(extra="forbid")

    type: str
    title: str
    status: int
    detail: str
    code: str
    retryable: bool = Field(description="Whether the same request may succeed later.")
    request_id: str
    errors: list[FieldProblem] = []


def document(specs: Sequence[RouteSpec], root_path: str = "") -> dict[str, Any]:
    """Returns the document of a broker that is served below `root_path`."""
    taken: dict[tuple[type[BaseModel], Any], None] = {(Problem, "serialization"): None}
    for spec in specs:
        if spec.body is not None:
            taken[(spec.body, "validation")] = None
        taken |= dict.fromkeys(
            (answer, "serialization")
            for answer in spec.answers.values()
            if isinstance(answer, type)
        )
    taken |= dict.fromkeys((kind.params_model, "validation") for kind in JobType)
    names, definitions = models_json_schema(list(taken), ref_template=_REF)
    schemas = definitions["$defs"]
    for schema in schemas.values():
        _describe_defaults(schema)
    for model in (JobRequest, QuoteRequest):
        _one_of_each_type(schemas, model.__name__)
    paths: dict[str, dict[str, Any]] = {}
    for spec in specs:
        paths.setdefault(spec.path, {})[spec.method.lower()] = _operation(spec, names)
    _link(specs, paths)
    return {
        "openapi": "3.1.0",
        "info": {"title": "Reelbroker", "version": version("reelbroker"), "description": _ABOUT},
        "servers": [{"url": root_path or "/"}],
        "security": [{"bearer": []}],
        "tags": [{"name": tag} for tag in dict.fromkeys(spec.tag for spec in specs)],
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


def _operation(spec: RouteSpec, names: Any) -> dict[str, Any]:
    summary, _, rest = inspect.cleandoc(spec.endpoint.__doc__ or "").partition("\n\n")
    described: dict[str, Any] = {
        "operationId": _id(spec),
        "summary": " ".join(summary.replace("`", "").split()),
        "tags": [spec.tag],
        "parameters": [*_parameters(spec)],
        "responses": {str(status): body for status, body in _responses(spec, names)},
    }
    if rest:
        described["description"] = " ".join(rest.split())
    if spec.access is Access.PUBLIC:
        described["security"] = []
    if spec.body is not None:
        content = {"schema": names[(spec.body, "validation")]}
        if issubclass(spec.body, JobRequest):
            content["examples"] = {name: {"value": value} for name, value in EXAMPLES.items()}
        described["requestBody"] = {"required": True, "content": {"application/json": content}}
    if spec.form is not None:
        content = {"schema": _form(spec.form)}
        described["requestBody"] = {"required": True, "content": {"multipart/form-data": content}}
    return described


def _form(model: type[BaseModel]) -> dict[str, Any]:
    """Describes a form: its fields, which cannot be null, and the video."""
    fields = model.model_json_schema(mode="validation", ref_template=_REF)
    _describe_defaults(fields)
    properties = {name: _without_null(field) for name, field in fields["properties"].items()}
    properties["video"] = {"type": "string", "contentMediaType": "application/octet-stream"}
    return fields | {"properties": properties, "required": ["video"]}


def _describe_defaults(schema: dict[str, Any]) -> None:
    """Moves the defaults of a model's fields into their descriptions.

    openapi-typescript and other generators make a field with a default a required one. A request
    need not have it.
    """
    for name, field in schema.get("properties", {}).items():
        default = field.pop("default", None)
        if name not in schema.get("required", ()) and default not in (None, "", [], {}):
            text = f"Default: `{json.dumps(default)}`."
            field["description"] = " ".join(filter(None, (field.get("description"), text)))


def _id(spec: RouteSpec) -> str:
    return spec.method.lower() + re.sub("[^a-z]+", "_", spec.path.removeprefix("/api")).rstrip("_")


def _link(specs: Sequence[RouteSpec], paths: dict[str, dict[str, Any]]) -> None:
    """Links each answer with an id to the routes whose path takes that id."""
    for spec in specs:
        for status, answer in spec.answers.items():
            for name, source in _ids_in(spec, answer):
                followers = [
                    other for other in specs if re.findall(r"\{(\w+)\}", other.path) == [name]
                ]
                paths[spec.path][spec.method.lower()]["responses"][str(status)]["links"] = {
                    _id(other): {"operationId": _id(other), "parameters": {name: source}}
                    for other in followers
                    if other.method != "PUT"
                }


def _ids_in(spec: RouteSpec, answer: Answer) -> Iterable[tuple[str, str]]:
    """Yields (name in paths, place in the answer) for the id of what a route creates."""
    if spec.method != "POST" or not isinstance(answer, type):
        return
    for name, source in _IDS.items():
        made_here = (
            name in ("job_id", "upload_id") or spec.path == f"/api/{name.removesuffix('_id')}s"
        )
        if made_here and source.rpartition("/")[2] in answer.model_fields:
            yield name, source


def _parameters(spec: RouteSpec) -> Iterable[dict[str, Any]]:
    for name in re.findall(r"\{(\w+)\}", spec.path):
        schema: dict[str, Any] = {"type": "string", "minLength": 1}
        if name == "type":
            schema["enum"] = [kind.value for kind in JobType]
        if spec.method == "PUT":
            schema["format"] = "uuid"
        yield {"name": name, "in": "path", "required": True, "schema": schema}
    if spec.query is not None:
        fields = spec.query.model_json_schema(mode="validation", ref_template=_REF)
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
    for name in spec.headers:
        limits = {"minLength": 1, "maxLength": MAX_KEY} if name == "Idempotency-Key" else {}
        schema = {"type": "string"} | limits
        yield {"name": name, "in": "header", "schema": schema, "description": _HEADERS[name]}


def _responses(spec: RouteSpec, names: Any) -> Iterable[tuple[int, dict[str, Any]]]:
    for status, answer in spec.answers.items():
        response: dict[str, Any] = {"description": http.HTTPStatus(status).phrase}
        if isinstance(answer, str):
            response["content"] = {answer: {}}
        elif answer is not None:
            schema = names[(answer, "serialization")]
            response["content"] = {"application/json": {"schema": schema}}
        if headers := _ANSWERED.get(status):
            response["headers"] = {name: {"schema": {"type": "string"}} for name in headers}
        yield status, response
    problems = {*spec.problems}
    problems |= {*_OF_A_BODY} if spec.body or spec.form else set()
    problems |= {415} if spec.form else set()
    problems |= {*_OF_A_USER} if spec.access is not Access.PUBLIC else set()
    problems |= {*_OF_AN_ADMIN} if spec.access is Access.ADMIN else set()
    content = {"application/problem+json": {"schema": names[(Problem, "serialization")]}}
    for status in sorted(problems):
        yield status, {"description": http.HTTPStatus(status).phrase, "content": content}


def _one_of_each_type(schemas: dict[str, Any], name: str) -> None:
    """Splits a job's schema by `type`: only the model itself matches `params` with `type`."""
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
    """Returns the schema of a field that may be left out but cannot be null."""
    kinds = [kind for kind in schema.get("anyOf", []) if kind.get("type") != "null"]
    return kinds[0] if len(kinds) == 1 else schema
