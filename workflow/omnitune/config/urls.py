"""What may be read from URLs that a data set names, and how much of it."""

import ipaddress
from collections.abc import Sequence
from typing import Annotated

from pydantic import Field, field_validator

from omnitune.config.affects import Affects
from omnitune.config.base import PositiveInt, Section, check_config
from omnitune.io.url_limits import UrlLimits

VERDICTS = Affects("samples")


class UrlOptions(Section):
    """Limits of what is read from URLs; a row that breaks one of them stands in the ledger."""

    response_mb: Annotated[PositiveInt, Field(description="Size of one image at a URL in MB."), VERDICTS] = (
        UrlLimits.response_mb
    )
    response_seconds: Annotated[
        PositiveInt, Field(description="Time for one answer in seconds, connecting included."), VERDICTS
    ] = UrlLimits.response_seconds
    row_mb: Annotated[
        PositiveInt, Field(description="What is read from URLs for all images of a row, in MB."), VERDICTS
    ] = UrlLimits.row_mb
    row_seconds: Annotated[
        PositiveInt, Field(description="Time for all images of a row at URLs, in seconds."), VERDICTS
    ] = UrlLimits.row_seconds
    samples_mb: Annotated[PositiveInt, Field(description="Size of a .jsonl file at a URL in MB."), VERDICTS] = (
        UrlLimits.samples_mb
    )
    samples_seconds: Annotated[
        PositiveInt, Field(description="Time for a .jsonl file at a URL in seconds."), VERDICTS
    ] = UrlLimits.samples_seconds
    private_networks: Annotated[
        list[str],
        Field(
            description="Addresses and networks (`10.1.0.0/16`) that http:// and https:// may read from although they "
            "are not public. All others of loopback, link-local and private ranges are refused."
        ),
        VERDICTS,
    ] = []

    @field_validator("private_networks")
    @classmethod
    def _are_networks(cls, value: list[str]) -> list[str]:
        for network in value:
            ipaddress.ip_network(network)  # its ValueError says what is wrong
        return value

    @property
    def limits(self) -> UrlLimits:
        """The same for what reads."""
        return UrlLimits.from_keys(self.model_dump())


def with_networks(networks: Sequence[str] | None) -> UrlLimits:
    """The usual limits, with private networks that a command's option names; ConfigError for what is none."""
    return check_config({"private_networks": list(networks or ())}, UrlOptions, "--private_network").limits
