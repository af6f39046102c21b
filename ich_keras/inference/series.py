"""Files to studies: which of them are axial slices of a head, and in what order they lie.

All axial series of a study are read, never one chosen among several.
"""

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import PurePosixPath

from ich_keras.ct.description import DESCRIBING, Description, describe
from ich_keras.ct.dicom import pseudonym, read_header
from ich_keras.errors import SliceError
from ich_keras.inference.identity import patients_of, without_copies
from ich_keras.inference.results import File, Skipped, Source


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


MAX_TILT = 45.0
"""Degrees between a slice's normal and the patient's axis above which it is not called axial. Gantries tilt
by up to 30, and heads on their holder add to that."""

REFORMATS = _words(
    """
    MPR REFORMATTED CURVED MIP MINIP MAXIP AVERAGE PROJECTION PARALLEL RADIAL THICK_MPR VRT SSD 3D
    VOLREN VOLUME_RENDERING CPR
    """
)
"""Values of ImageType, or words of them, that say that a slice was cut or projected from a volume."""

OTHER_BODY_PARTS = _words(
    """
    CHEST THORAX LUNG HEART CORONARY BREAST ABDOMEN ABDOMENPELVIS CHESTABDOMEN CHESTABDPELVIS LIVER
    KIDNEY PANCREAS SPLEEN PELVIS BLADDER PROSTATE UTERUS SPINE CSPINE TSPINE LSPINE SSPINE CTSPINE
    TLSPINE LSSPINE COCCYX AORTA HIP FEMUR LEG KNEE ANKLE FOOT EXTREMITY SHOULDER ARM ELBOW WRIST HAND
    CLAVICLE RIB STERNUM WHOLEBODY
    """
)
"""Values of BodyPartExamined (PS3.16 annex L) that are surely not the head. Any other is read."""

FAILURES = frozenset(
    (
        "unreadable-file",
        "damaged-file",
        "truncated",
        "no-pixels",
        "bad-header",
        "multi-frame",
        "unsupported-transfer-syntax",
        "undecodable",
    )
)
"""Reasons of files that may be slices of the head and could not be read. The others are no such slices."""

_MODALITIES = _words(
    """
    CR DX MG MR NM PT US XA RF IO PX SR PR KO SEG REG RTSTRUCT RTPLAN RTDOSE RTIMAGE RTRECORD OT SC DOC
    ECG AU ES GM SM OP OPT XC FID PLAN
    """
)
_SUFFIXES = frozenset((".dcm", ".dicom", ".ima"))
"""Of files that are slices by their name."""

_DOSE_REPORT = "1.2.840.10008.5.1.4.1.1.88.67"


@dataclass(frozen=True, slots=True)
class Slice:
    """A slice to be read: `z_mm` along the normal of its series, NaN where unknown."""

    id: str
    series: str
    z_mm: float
    rows: int
    columns: int
    source: Source
    orientation: tuple[float, ...] = ()


@dataclass(frozen=True)
class Study:
    """The files of one patient's study.

    Attributes:
        id: RSNA's pseudonym or the hash of the study's UID; of UID and patient where two patients share it.
        patient: pseudonym, "" where unknown.
        slices: to be read, in order along the normal, series after series.
        skipped: the others.
        note: what a reader should know of it.
        no_dicom: why no DICOM object can refer to it, "" where one may.
    """

    id: str
    patient: str
    slices: tuple[Slice, ...]
    skipped: tuple[Skipped, ...]
    note: str = ""
    no_dicom: str = ""

    @property
    def sources(self) -> list[Source]:
        return [entry.source for entry in self.slices] + [entry.source for entry in self.skipped]

    @property
    def unread(self) -> int:
        """How many files that may be slices of the head could not be read."""
        return sum(entry.reason in FAILURES for entry in self.skipped)


def read_file(source: Source) -> File:
    """Reads a file's header and judges whether it is an axial slice of a head. Nothing is raised."""
    values: dict[int, bytes] = {}
    header, reason, detail = None, "", ""
    try:
        with source.open() as (file, size):
            header = read_header(file, size, also=DESCRIBING, values=values)
    except SliceError as error:
        reason, detail = error.reason, str(error)
    except Exception as error:
        # One file never stops the others, and the text of a foreign error may hold what stands in it.
        reason, detail = "unreadable-file", f"reading it failed ({type(error).__name__})"
    description = describe(values)
    # The kind goes first: a localizer that also lacks Rows is a localizer.
    other_kind, why = _kind(description)
    if other_kind:
        return File(source, description, None, other_kind, why)
    if header is None:
        return File(source, description, None, reason, detail)
    tilt = tilt_degrees(header.orientation)
    if tilt > MAX_TILT:
        detail = f"the slice is tilted by {tilt:.0f} degrees; up to {MAX_TILT:.0f} is called axial"
        return File(source, description, None, "not-axial", detail)
    return File(source, description, header)


def _kind(description: Description) -> tuple[str, str]:
    """Why a file is no axial slice of a head, as a reason and its detail; two empty texts where it may be."""
    modality, words = description.modality, set(description.image_type)
    if description.sop_class == _DOSE_REPORT:
        return "not-ct", "the file is a dose report"
    if modality not in ("CT", ""):
        named = modality if modality in _MODALITIES else "another"
        return "not-ct", f"Modality is {named}; expected CT"
    if "LOCALIZER" in words:
        return "localizer", "ImageType says LOCALIZER"
    if description.body_part.replace(" ", "").replace("_", "") in OTHER_BODY_PARTS:
        return "other-body-part", "BodyPartExamined is not the head"
    for value in description.image_type:
        if not REFORMATS.isdisjoint({value, *value.replace("_", " ").split()}):
            return "reformat", "ImageType says that the slice was cut or projected from a volume"
    if description.image_type[:2] == ("DERIVED", "SECONDARY"):
        return "derived", "ImageType says DERIVED\\SECONDARY"
    return "", ""


def tilt_degrees(orientation: Sequence[float]) -> float:
    """Degrees between the slice's normal and the patient's axis (PS3.3 section C.7.6.2.1.1), or NaN."""
    normal = _normal(orientation)
    return math.nan if normal is None else math.degrees(math.acos(min(1.0, normal[2])))


def _normal(orientation: Sequence[float]) -> tuple[float, float, float] | None:
    """The unit normal that points to the head; None where the orientation is none."""
    a, b, c, d, e, f = orientation
    normal = (b * f - c * e, c * d - a * f, a * e - b * d)
    length = math.hypot(*normal)
    # Two unit vectors at a right angle; what is far from that says nothing.
    if not 0.5 < length < 2:
        return None
    length = math.copysign(length, normal[2])
    return normal[0] / length, normal[1] / length, normal[2] / length


def group_studies(files: Iterable[File], every_mm: float | None = None) -> tuple[list[Study], list[Skipped]]:
    """Groups files into studies.

    Args:
        files: of any number of patients, in any order.
        every_mm: thins each series to the slices nearest to steps of so many mm; None reads all.

    Returns:
        The studies in order of their ids, and the files that belong to none.
    """
    studies: list[Study] = []
    by_uid: dict[str, list[File]] = defaultdict(list)
    files = list(files)
    others = _of_no_study(files)
    for file in files:
        if file.header is not None or file.description.study:
            by_uid[file.description.study].append(file)
    for uid, members in by_uid.items():
        patients, joined = patients_of(members)
        for patient, of_patient in patients.items():
            notes = []
            name = uid if uid and len(patients) == 1 else pseudonym(f"{patient}/{uid}")
            if not uid:
                notes.append("the files name no study")
            elif len(patients) > 1:
                notes.append(f"{len(patients)} patients share this study's UID; they are kept apart")
            if patient in joined:
                notes.append(f"{joined[patient]} files without a patient ID are counted as this patient's")
            studies.append(_study(name, patient, of_patient, notes, every_mm))
    return sorted(studies, key=lambda study: study.id), others


def _of_no_study(files: Sequence[File]) -> list[Skipped]:
    """Files that belong to no study; those that by their name or their folder are slices are damaged."""
    kinds = {_kind_of_name(file.source.path) for file in files if file.header is not None}
    found = []
    for file in files:
        if file.header is not None or file.description.study:
            continue
        kind = _kind_of_name(file.source.path)
        silent = file.description == Description() and file.reason in ("not-dicom", "not-ct")
        if silent and (kind[1] in _SUFFIXES or kind in kinds):
            file = replace(
                file, reason="damaged-file", detail="expected a slice, as its name or its folder says"
            )
        found.append(file.skipped)
    return found


def _kind_of_name(path: str) -> tuple[str, str]:
    """A file's folder and suffix; a number, as where files go by their UID, is none."""
    suffix = PurePosixPath(path).suffix.lower()
    return path.rpartition("/")[0], "" if suffix[1:].isdigit() else suffix


_SHARED = "files of different slices carry one SOP instance UID"


def _study(name: str, patient: str, files: list[File], notes: list[str], every_mm: float | None) -> Study:
    skipped = [file.skipped for file in files if file.header is None]
    read, copies, shared = without_copies([file for file in files if file.header is not None])
    skipped += copies
    series: dict[str, list[File]] = defaultdict(list)
    for file in read:
        series[file.description.series].append(file)
    slices: list[Slice] = []
    for key in sorted(series):
        ordered = sort_slices(series[key])
        if every_mm is not None:
            ordered, left = _thin(ordered, every_mm)
            skipped += left
        slices += ordered
    if shared:
        notes.append(f"{_SHARED}; all are read")
    return Study(
        name, patient, tuple(slices), tuple(skipped), "; ".join(notes), no_dicom=_SHARED if shared else ""
    )


def sort_slices(files: Sequence[File]) -> list[Slice]:
    """The slices of one series in order along its normal, towards the head.

    Slices at one position go by InstanceNumber; those of unknown position come last, by it too.
    """
    headers = [file.header for file in files if file.header is not None]
    normals = (_normal(header.orientation) for header in headers)
    normal = next((normal for normal in normals if normal is not None), (0.0, 0.0, 1.0))
    found: list[tuple[tuple, Slice]] = []
    for file, header in zip(files, headers, strict=True):
        place = sum(p * n for p, n in zip(header.position, normal, strict=True))
        number = file.description.number
        entry = Slice(
            file.description.instance or pseudonym(file.source.path),
            file.description.series,
            place if math.isfinite(place) else math.nan,
            header.rows,
            header.columns,
            file.source,
            header.orientation,
        )
        known = math.isfinite(place)
        order = (not known, place if known else 0.0, number is None, number or 0, file.source.path)
        found.append((order, entry))
    return [entry for _, entry in sorted(found, key=lambda pair: pair[0])]


def _thin(slices: list[Slice], every_mm: float) -> tuple[list[Slice], list[Skipped]]:
    """Keeps of the slices around each step the nearest, and all whose place is unknown."""
    nearest: dict[int, tuple[float, int]] = {}
    keep = set()
    for k, entry in enumerate(slices):
        steps = (entry.z_mm - slices[0].z_mm) / every_mm
        if not math.isfinite(steps):
            keep.add(k)
            continue
        step = round(steps)
        nearest[step] = min(nearest.get(step, (math.inf, k)), (abs(steps - step), k))
    keep.update(k for _, k in nearest.values())
    detail = f"between the steps of {every_mm:g} mm"
    return (
        [entry for k, entry in enumerate(slices) if k in keep],
        [Skipped(entry.source, "thinned", detail) for k, entry in enumerate(slices) if k not in keep],
    )


def read_files(sources: Sequence[Source], advance: Callable[[int], None] = lambda count: None) -> list[File]:
    """Reads every file's header; `advance` is told of each."""
    files = []
    for source in sources:
        files.append(read_file(source))
        advance(1)
    return files


def in_part(study: Study, part: int, parts: int) -> bool:
    """Whether a study is of this part: by a hash of its id, so parts are disjoint and cover everything."""
    return int(pseudonym(f"part/{study.id}")[1:9], 16) % parts == part
