"""A study's result as a Comprehensive 3D SR after TID 1500 (PS3.16): one measurement group a label."""

from collections.abc import Sequence
from copy import deepcopy

from highdicom.sr import (
    AlgorithmIdentification,
    CodedConcept,
    Comprehensive3DSR,
    DeviceObserverIdentifyingAttributes,
    Measurement,
    MeasurementReport,
    MeasurementsAndQualitativeEvaluations,
    ObservationContext,
    ObserverContext,
    QualitativeEvaluation,
    SourceImageForMeasurementGroup,
    TrackingIdentifier,
)
from pydicom.dataset import Dataset
from pydicom.sr.codedict import codes

import ich_keras
from ich_keras.inference.dicom_source import ALWAYS, SourceStudy, derived_uid
from ich_keras.inference.results import StudyResult
from ich_keras.labels import LABELS

FINDINGS = {
    "epidural": CodedConcept("82999001", "SCT", "Epidural intracranial hemorrhage"),
    "intraparenchymal": CodedConcept("274100004", "SCT", "Cerebral hemorrhage"),
    "intraventricular": CodedConcept("23276006", "SCT", "Intraventricular hemorrhage"),
    "subarachnoid": CodedConcept("21454007", "SCT", "Subarachnoid intracranial hemorrhage"),
    "subdural": CodedConcept("35486000", "SCT", "Subdural intracranial hemorrhage"),
    "any": CodedConcept("1386000", "SCT", "Intracranial hemorrhage"),
}
"""Each label's SNOMED CT concept."""

PROBABILITY = CodedConcept("122157", "DCM", "Probability")
PRESENCE = CodedConcept("705057003", "SCT", "Presence")
PRESENT, ABSENT = codes.cid240.Present, codes.cid240.Absent
PROCEDURE = codes.SCT.ComputedTomographyOfHead

SERIES_NUMBER = 9101


def structured_report(study: StudyResult, source: SourceStudy, key: Sequence[object]) -> Dataset:
    """Builds the report.

    Args:
        study: the result.
        source: what `read_source_study` gives for its slices.
        key: what the report's UIDs depend on.

    Returns:
        The SR as a data set with file meta, without the patient's identity.
    """
    report = MeasurementReport(
        observation_context=ObservationContext(
            observer_device_context=ObserverContext(
                observer_type=codes.DCM.Device,
                observer_identifying_attributes=DeviceObserverIdentifyingAttributes(
                    uid=derived_uid("device", ich_keras.__version__, study.model_sha256),
                    name="ich_keras",
                    manufacturer_name="ich_keras",
                    model_name="ich_keras",
                ),
            )
        ),
        procedure_reported=PROCEDURE,
        imaging_measurements=[_group(study, source, k, key) for k in range(len(LABELS))],
        referenced_images=_library(study, source),
    )
    # highdicom takes the patient from the first; `write_dicom` puts the identity in.
    first = deepcopy(source.slices[0])
    for keyword in ALWAYS:
        setattr(first, keyword, None)
    return Comprehensive3DSR(
        evidence=[first, *source.slices[1:]],
        content=report,
        series_instance_uid=derived_uid("report series", *key),
        series_number=SERIES_NUMBER,
        sop_instance_uid=derived_uid("report", *key),
        instance_number=1,
        manufacturer="ich_keras",
        manufacturer_model_name="ich_keras",
        software_versions=ich_keras.__version__,
        series_description="Hemorrhage probabilities, not for clinical use",
        is_complete=len(study.slices) >= study.expected,
    )


def _group(
    study: StudyResult, source: SourceStudy, k: int, key: Sequence[object]
) -> MeasurementsAndQualitativeEvaluations:
    label = LABELS[k]
    return MeasurementsAndQualitativeEvaluations(
        tracking_identifier=TrackingIdentifier(uid=derived_uid("group", label, *key), identifier=label),
        finding_type=FINDINGS[label],
        algorithm_id=AlgorithmIdentification(
            name="ich_keras",
            version=ich_keras.__version__,
            family=codes.cid7162.ArtificialIntelligence,
            parameters=[
                "research only; not for clinical use",
                *(["trained on phantoms, not on patients"] if study.model.get("synthetic") else []),
                f"model sha256 {study.model_sha256}",
                f"{len(study.slices)} of {max(study.expected, len(study.slices))} slices were read",
                f"flagged at a probability of {study.thresholds[k]:.6g} or more",
            ],
        ),
        measurements=[
            Measurement(
                name=PROBABILITY,
                value=float(study.scores["max"][k]),
                unit=codes.UCUM.NoUnits,
                # The highest of the slices' probabilities.
                derivation=codes.SCT.Maximum,
            )
        ],
        qualitative_evaluations=_verdict(study, label),
        source_images=[
            SourceImageForMeasurementGroup(one.SOPClassUID, one.SOPInstanceUID)
            for one in (source.slices[place] for place in study.key_slices.get(label, ()))
        ],
    )


def _verdict(study: StudyResult, label: str) -> list[QualitativeEvaluation] | None:
    """Present or absent; neither where a slice that was not read could have been the one that bleeds."""
    if label in study.flagged:
        return [QualitativeEvaluation(name=PRESENCE, value=PRESENT)]
    whole = len(study.slices) >= study.expected
    return [QualitativeEvaluation(name=PRESENCE, value=ABSENT)] if whole else None


def _library(study: StudyResult, source: SourceStudy) -> list[Dataset] | None:
    """The key slices, if TID 1604 can describe all of them."""
    needed = ("PixelSpacing", "SliceThickness", "ImagePositionPatient", "ImageOrientationPatient")
    places = sorted({place for places in study.key_slices.values() for place in places})
    images = [source.slices[place] for place in places]
    return images if images and all(name in one for one in images for name in needed) else None
