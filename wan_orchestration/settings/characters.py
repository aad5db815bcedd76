"""The `characters` block of `job.yaml`: who replaces whom."""

from collections.abc import Sequence

from pydantic import BaseModel, ConfigDict, Field, field_validator

from wan_orchestration.settings.preprocess import beside_the_video, check_person

MOST_CHARACTERS = 8


class Character(BaseModel):
    """A picture, and the person of the driving video whom its character replaces."""

    model_config = ConfigDict(extra="forbid")

    picture: str = Field(description="Name of the picture in the job folder.")
    person: str = Field(
        description="Whom the character replaces: index:N, box:x0,y0,x1,y1 or point:x,y, as in preprocess."
    )
    mask: str | None = Field(
        default=None, description="Name of a mask video of this person; default: found as preprocess.masks says."
    )

    _person = field_validator("person")(check_person)
    _files = field_validator("picture", "mask")(beside_the_video)


def check_characters(characters: Sequence[Character]) -> None:
    """ValueError: two characters replace one person. Choices in other words are compared when people are found."""
    seen: dict[str, int] = {}
    for number, one in enumerate(characters, 1):
        choice = one.person.replace(" ", "").replace("largest", "index:1")
        if choice in seen:
            raise ValueError(
                f"characters {seen[choice]} and {number} both replace the person {one.person}; give each another person"
            )
        seen[choice] = number
