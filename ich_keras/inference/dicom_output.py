"""A study's result as DICOM objects: a structured report, and its key slices as pictures."""

import io
import logging
from collections.abc import Iterator
from itertools import chain
from pathlib import Path

import pydicom
from pydicom.dataset import Dataset

from ich_keras.errors import SliceError
from ich_keras.files import fingerprint, whole_file
from ich_keras.inference.dicom_source import PATIENT, SourceError, SourceStudy, quiet, read_source_study
from ich_keras.inference.outputs import software
from ich_keras.inference.results import StudyResult
from ich_keras.inference.secondary_capture import secondary_captures
from ich_keras.inference.structured_report import structured_report

logger = logging.getLogger(__name__)


def write_dicom(study: StudyResult, folder: Path, *, sr: bool, sc: bool) -> str:
    """Writes a study's DICOM objects as `report-<hash>.dcm` and `key-slice-<hash>.dcm`, all or none.

    The objects belong to the source's study and name its patient. Their UIDs depend on the source, on how
    many slices were read and expected, the model, the thresholds and this package's files alone, so that an
    archive that gets them twice has them once.

    Args:
        study: the result.
        folder: where to write; made if absent.
        sr: write the Comprehensive 3D SR (TID 1500).
        sc: write a Secondary Capture of each key slice; none where nothing is flagged.

    Returns:
        "", or the reason why nothing was written: the source can't be referred to, or is gone.
    """
    with quiet("pydicom", "highdicom"):
        try:
            source = read_source_study([one.source for one in study.slices])
            files = {name: _encoded(result, source) for name, result in _objects(study, source, sr, sc)}
        except (SourceError, SliceError) as error:
            return str(error)
        except Exception as error:
            # The text of a foreign error may hold what stands in a header.
            logger.error("study %s: no DICOM objects (%s)", study.id, type(error).__name__)
            logger.debug("study %s", study.id, exc_info=True)
            return f"they could not be made ({type(error).__name__})"
    for name, content in files.items():
        with whole_file(folder / name) as path:
            path.write_bytes(content)
    return ""


def _objects(study: StudyResult, source: SourceStudy, sr: bool, sc: bool) -> Iterator[tuple[str, Dataset]]:
    """File names and objects, still without the patient."""
    key = (
        software()["sha256"],
        study.model_sha256,
        study.expected,
        fingerprint([float(threshold) for threshold in study.thresholds]),
        fingerprint([str(one.SOPInstanceUID) for one in source.slices]),
        # Two patients may share a study UID by mistake; a map changes the picture.
        fingerprint([[str(source.identity[keyword].value) for keyword in PATIENT], sorted(study.maps)]),
    )
    reports = [structured_report(study, source, key)] if sr else []
    for result in chain(reports, secondary_captures(study, source, key) if sc else ()):
        kind = "report" if result.Modality == "SR" else "key-slice"
        yield f"{kind}-{fingerprint(str(result.SOPInstanceUID))[:16]}.dcm", result


def _encoded(result: Dataset, source: SourceStudy) -> bytes:
    for element in source.identity:
        result[element.tag] = element
    file = io.BytesIO()
    pydicom.dcmwrite(file, result, enforce_file_format=True)
    return file.getvalue()
