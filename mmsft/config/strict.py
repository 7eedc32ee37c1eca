"""What all settings have in common."""

from typing import Any, get_args

from pydantic import BaseModel, ConfigDict, ValidationInfo, field_validator


class Strict(BaseModel):
    """A frozen model that refuses keys it doesn't know, and true or false where a number is due.

    Checks of one setting against another are field validators, which run though a third setting is wrong: so all
    problems come at once.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, ser_json_inf_nan="constants")

    @field_validator("*", mode="before")
    @classmethod
    def _no_switch(cls, value: Any, info: ValidationInfo) -> Any:
        taken = cls.model_fields[info.field_name or ""].annotation
        if isinstance(value, bool) and taken is not bool:
            off = "; null turns it off" if type(None) in get_args(taken) else ""
            raise ValueError(f"doesn't take true or false, got {str(value).lower()}{off}")
        return value
