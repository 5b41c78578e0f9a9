"""The section `judges` of benchmark files: models behind an OpenAI-compatible endpoint that score images."""

import re
from typing import Annotated, Any
from urllib.parse import urlsplit

from pydantic import Field, field_validator
from pydantic_core import PydanticCustomError

from omnitune.config.base import SECRET, PathText, PositiveInt, Section


class Judge(Section):
    """A model that looks at the images and scores them, at an OpenAI-compatible endpoint."""

    name: Annotated[
        str,
        Field(
            pattern=r"^[A-Za-z][A-Za-z0-9_]{0,39}$",
            description="Names its measures, judge_{name}_instruction and judge_{name}_quality, and its answers' "
            "folder.",
        ),
    ]
    base_url: Annotated[
        str, Field(description="Of the endpoint, up to `/chat/completions`: `http://127.0.0.1:8000/v1`.")
    ]
    model: Annotated[str, Field(min_length=1, description="Name of the model there.")]
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
        dict[str, Any], Field(description="Keys of the request beside model and messages, as the endpoint knows them.")
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
        return self.model_dump(mode="json", include={"name", "model", "repeats", "max_side", "parameters"})

    @field_validator("base_url")
    @classmethod
    def _is_plain(cls, url: str) -> str:
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
