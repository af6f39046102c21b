"""What a DICOM file says of itself: to whom it belongs and what it shows, whether or not it is a slice."""

import re
from collections.abc import Mapping
from dataclasses import dataclass

from ich_keras.ct.dicom import pseudonym

_TAGS = {
    "image_type": 0x0008_0008,
    "sop_class": 0x0008_0016,
    "instance": 0x0008_0018,
    "modality": 0x0008_0060,
    "name": 0x0010_0010,
    "patient": 0x0010_0020,
    "birth_date": 0x0010_0030,
    "body_part": 0x0018_0015,
    "study": 0x0020_000D,
    "series": 0x0020_000E,
    "number": 0x0020_0013,
}
DESCRIBING = frozenset(_TAGS.values())
"""The tags whose values `describe` takes."""

_INTEGER = re.compile(r"[+-]?[0-9]{1,12}")


@dataclass(frozen=True, slots=True)
class Description:
    """What was found; "", empty or None where the file does not say.

    Attributes:
        patient, study, series, instance: pseudonyms, as `ct.dicom.pseudonym` makes them.
        person: a hash of the patient's name and birth date, which tell patients without an ID apart.
        modality, sop_class, body_part: as written, body_part (PS3.16 annex L) in capitals.
        image_type: the values of ImageType (PS3.3 section C.7.6.1.1.2), in capitals.
        number: InstanceNumber.
    """

    patient: str = ""
    person: str = ""
    study: str = ""
    series: str = ""
    instance: str = ""
    modality: str = ""
    sop_class: str = ""
    body_part: str = ""
    image_type: tuple[str, ...] = ()
    number: int | None = None


def describe(values: Mapping[int, bytes]) -> Description:
    """The description that a file's elements give.

    Args:
        values: by tag, as `ct.dicom.read_header` finds them; of a damaged file, those before the damage.
    """

    def text(name: str) -> str:
        return values.get(_TAGS[name], b"").decode("latin-1").strip(" \0")

    number = text("number")
    person = text("name"), text("birth_date")
    return Description(
        patient=pseudonym(text("patient")),
        person=pseudonym("/".join(person)) if any(person) else "",
        study=pseudonym(text("study")),
        series=pseudonym(text("series")),
        instance=pseudonym(text("instance")),
        modality=text("modality"),
        sop_class=text("sop_class"),
        body_part=text("body_part").upper(),
        image_type=tuple(part.strip().upper() for part in text("image_type").split("\\") if part.strip()),
        number=int(number) if _INTEGER.fullmatch(number) else None,
    )
