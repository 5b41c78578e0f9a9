"""The section `judges` of benchmark files: models that score images, behind an OpenAI-compatible endpoint or here."""

import re
from typing import Annotated, Any, Self
from urllib.parse import urlsplit

from pydantic import Field, ValidationError, field_validator, model_validator
from pydantic_core import PydanticCustomError

from omnitune.config.base import SECRET, PathText, PositiveInt, Section

OF_ENDPOINTS = ("api_key_env", "concurrency", "rate", "timeout", "retries")


class Sampling(Section):
    """`parameters` of a judge that runs here."""

    temperature: Annotated[float, Field(ge=0)] = 0.0
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    max_tokens: PositiveInt = 1024


class Judge(Section):
    """A model that looks at the images and scores them, at an OpenAI-compatible endpoint or in a job of its own."""

    name: Annotated[
        str,
        Field(
            pattern=r"^[A-Za-z][A-Za-z0-9_]{0,39}$",
            description="Names its measures, judge_{name}_instruction and judge_{name}_quality, and its answers' "
            "folder.",
        ),
    ]
    base_url: Annotated[
        str | None,
        Field(
            description="Of the endpoint, up to `/chat/completions`: `http://127.0.0.1:8000/v1`. null: the model runs "
            "in a job of this workflow, on a GPU where there is one."
        ),
    ] = None
    model: Annotated[
        str,
        Field(
            min_length=1,
            description="Name of the model there. Without base_url: folder of a model in the layout of transformers "
            "that takes images and texts, or id on the hub.",
        ),
    ]
    api_key_env: Annotated[
        str | None,
        Field(
            pattern=r"^[A-Za-z_][A-Za-z0-9_]*$",
            description="The environment variable that holds the key. null: none is sent. The key itself stands "
            "nowhere.",
        ),
    ] = None
    repeats: Annotated[int, Field(ge=1, le=100, description="How often it is asked of each image.")] = 1
    max_side: Annotated[
        int, Field(ge=64, le=4096, description="Images are sent with the longer side reduced to this, in pixels.")
    ] = 768
    parameters: Annotated[
        dict[str, Any],
        Field(
            description="Keys of the request beside model and messages, as the endpoint knows them. Without base_url: "
            "temperature, top_p and max_tokens."
        ),
    ] = {"temperature": 0, "max_tokens": 1024}
    concurrency: Annotated[PositiveInt, Field(description="Requests at a time.")] = 4
    rate: Annotated[float | None, Field(gt=0, description="Requests a minute, at most. null: no limit.")] = None
    timeout: Annotated[float, Field(gt=0, description="Seconds that a request may take in all.")] = 120.0
    retries: Annotated[
        int,
        Field(ge=0, le=20, description="How often a request is made again that was not answered, with growing pauses."),
    ] = 4
    labels: Annotated[
        PathText | None,
        Field(
            description="A .jsonl of people's scores, with which the judge's are compared: `image` (a path), "
            "`instruction` and `quality` (numbers of any scale)."
        ),
    ] = None

    @property
    def asked(self) -> dict[str, Any]:
        """What its answers depend on."""
        asked = self.model_dump(mode="json", include={"name", "model", "repeats", "max_side", "parameters"})
        return {**asked, "local": True} if self.base_url is None else asked

    @property
    def sampling(self) -> Sampling:
        """`parameters` of one that runs here."""
        return Sampling.model_validate(self.parameters)

    @field_validator("base_url")
    @classmethod
    def _is_plain(cls, url: str | None) -> str | None:
        if url is None:
            return None
        try:
            parts = urlsplit(url)
            host, _ = parts.hostname, parts.port
        except ValueError:
            host = None
        if parts.scheme not in {"http", "https"} or not host or re.search(r"\s", url):
            raise ValueError("needs a URL, as in https://host/v1")
        if parts.username or parts.password or parts.query or parts.fragment:
            raise PydanticCustomError(SECRET, "takes no credentials, `?` or `#`; name a variable in api_key_env")
        return url.rstrip("/")

    @field_validator("parameters")
    @classmethod
    def _leaves_the_request_alone(cls, parameters: dict[str, Any]) -> dict[str, Any]:
        taken = sorted({"model", "messages", "stream", "n"} & parameters.keys())
        if taken:
            raise ValueError(f"{', '.join(taken)} are set by the workflow; take them out")
        return parameters

    @model_validator(mode="after")
    def _fits_where_it_runs(self) -> Self:
        if self.base_url is not None:
            return self
        for name in OF_ENDPOINTS:
            if getattr(self, name) != type(self).model_fields[name].default:
                raise ValueError(f"{name}: is of an endpoint, and base_url is missing; take one out or name the other")
        try:
            sampling = self.sampling
        except ValidationError as error:
            first, known = error.errors()[0], ", ".join(Sampling.model_fields)
            reason = f"known without base_url: {known}" if first["type"] == "extra_forbidden" else first["msg"]
            raise ValueError(f"parameters.{first['loc'][0]}: {first['input']!r} is not allowed: {reason}") from None
        if self.repeats > 1 and not sampling.temperature:
            raise ValueError("repeats: with temperature 0 all answers are the same; raise it in parameters, or take 1")
        return self
