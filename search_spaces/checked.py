"""Records that say in one line what is wrong with them."""

from __future__ import annotations

from typing import Annotated, Any, Self

from pydantic import BaseModel, Field, ValidationError

from fewstep.errors import ConfigurationError

# What tables hold as a seed leaves room for the report's.
LARGEST_SEED = 2**62
Seed = Annotated[int, Field(ge=0, le=LARGEST_SEED)]


def shown(part: object) -> str:
    """A field's name, or a place in a list, without line breaks and signs that cannot be printed."""
    text = str(part)
    return text if text.isprintable() else repr(text)[1:-1]


def first_problem(error: ValidationError) -> str:
    """The first problem that pydantic found, as `field: message`."""
    first = error.errors(include_url=False)[0]
    where = ".".join(shown(part) for part in first["loc"])
    message = str(first["msg"]).removeprefix("Value error, ")
    return f"{where}: {message}" if where else message


class Checked(BaseModel):
    """Base of settings that come from a user."""

    @classmethod
    def build(cls, **fields: Any) -> Self:
        """Construct; ConfigurationError with the first problem instead of pydantic's error."""
        try:
            return cls(**fields)
        except ValidationError as error:
            raise ConfigurationError(first_problem(error)) from None
