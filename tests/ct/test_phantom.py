"""Phantoms: the files are RSNA's in form, the labels are the lesions', the lesions are blood in its place."""

import csv
import json
import subprocess
import sys
import warnings
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pydicom
import pytest
from scipy import ndimage

from ich_keras.ct import phantom
from ich_keras.ct.anatomy import tentorium_height
from ich_keras.ct.lesions import Lesion
from ich_keras.ct.phantom import Study, main, make_study, write_phantoms
from ich_keras.ct.phantom_files import Encoding, random_encoding, write_study
from ich_keras.ct.scanner import random_scan, scan_slice
from ich_keras.errors import InputError
from ich_keras.labels import LABELS, SUBTYPES

RSNA_ELEMENTS = [
    "SOPInstanceUID",
    "Modality",
    "PatientID",
    "StudyInstanceUID",
    "SeriesInstanceUID",
    "StudyID",
    "ImagePositionPatient",
    "ImageOrientationPatient",
    "SamplesPerPixel",
    "PhotometricInterpretation",
    "Rows",
    "Columns",
    "PixelSpacing",
    "BitsAllocated",
    "BitsStored",
    "HighBit",
    "PixelRepresentation",
    "WindowCenter",
    "WindowWidth",
    "RescaleIntercept",
    "RescaleSlope",
    "PixelData",
]
SEED = 3
THICKNESS = 20.0


def read(path: Path) -> pydicom.FileDataset:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Invalid value for VR UI")
        dataset = pydicom.dcmread(path)
        list(dataset)  # elements are decoded, and warned about, when first looked at
    return dataset


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("phantoms") / "data"
    assert write_phantoms(out, 2, SEED, 1, thickness=THICKNESS)
    return out


@pytest.fixture(scope="module")
def studies() -> dict[str, Study]:
    return {s: make_study(np.random.default_rng((25, k)), s, thickness=7) for k, s in enumerate(SUBTYPES)}


def files_of(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def test_bytes_depend_on_neither_workers_nor_the_number_of_patients(data: Path, tmp_path: Path) -> None:
    one = files_of(data)
    write_phantoms(tmp_path / "more", 3, SEED, 2, thickness=THICKNESS)
    more = files_of(tmp_path / "more")
    slices = [name for name in one if name.endswith(".dcm")]
    assert slices
    assert all(more[name] == one[name] for name in slices)
    assert set(one["stage_2_train.csv"].splitlines()) < set(more["stage_2_train.csv"].splitlines())
    write_phantoms(tmp_path / "other", 1, SEED + 1, 1, thickness=THICKNESS)
    assert not set(slices) & set(files_of(tmp_path / "other"))


def test_files_have_the_elements_of_rsna_in_its_order(data: Path) -> None:
    paths = sorted((data / "stage_2_train").glob("*.dcm"))
    for path in paths:
        assert path.read_bytes()[:132] == b"\0" * 128 + b"DICM"
        dataset = read(path)
        assert [element.keyword for element in dataset] == RSNA_ELEMENTS
        assert dataset.SOPInstanceUID == path.stem
        assert (dataset.Rows, dataset.Columns, dataset.BitsAllocated) == (512, 512, 16)
        assert len(dataset.PixelData) == 512 * 512 * 2
        assert all(dataset[k].VR == "UI" for k in ("SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID"))
    patients = {read(path).PatientID for path in paths}
    assert len(patients) == 2


def test_elements_are_those_of_the_real_files(data: Path, rsna_sample: Path) -> None:
    ours = read(next((data / "stage_2_train").glob("*.dcm")))
    for path in sorted((rsna_sample / "stage_2_train").glob("*.dcm"))[:5]:
        real = read(path)
        assert [(e.tag, e.VR) for e in ours] == [(e.tag, e.VR) for e in real]


def test_slices_of_a_study_lie_one_thickness_apart(data: Path) -> None:
    series: dict[str, list[np.ndarray]] = {}
    normals = {}
    for path in (data / "stage_2_train").glob("*.dcm"):
        dataset = read(path)
        axes = np.array(dataset.ImageOrientationPatient, float).reshape(2, 3)
        normals[dataset.SeriesInstanceUID] = np.cross(*axes)
        series.setdefault(dataset.SeriesInstanceUID, []).append(np.array(dataset.ImagePositionPatient, float))
    for name, positions in series.items():
        along = np.sort(np.array(positions) @ normals[name])
        assert np.allclose(np.diff(along), THICKNESS, atol=1e-3)


def test_spacing_leaves_slices_out(tmp_path: Path) -> None:
    """Fewer slices of the same thickness, with the distance in their headers."""
    write_phantoms(tmp_path / "few", 1, SEED, 1, thickness=5.0, spacing=40.0)
    slices = [read(path) for path in (tmp_path / "few" / "stage_2_train").glob("*.dcm")]
    assert 3 <= len(slices) <= 6
    normal = np.cross(*np.array(slices[0].ImageOrientationPatient, float).reshape(2, 3))
    along = np.sort([np.dot(normal, np.array(one.ImagePositionPatient, float)) for one in slices])
    assert np.allclose(np.diff(along), 40.0, atol=1e-3)
    scan = random_scan(np.random.default_rng(0), 5.0, 40.0)
    dense = replace(scan, spacing=5.0)
    head, lesions = phantom._patient(np.random.default_rng(1), None)
    apart = scan_slice(head, lesions, replace(scan, noise=0.0), 2, None)[0]
    # Slice 2 of spacing 40 lies where slice 16 of spacing 5 does.
    assert np.allclose(apart, scan_slice(head, lesions, replace(dense, noise=0.0), 16, None)[0], atol=1e-2)


def test_label_file_has_six_rows_an_image(data: Path) -> None:
    with (data / "stage_2_train.csv").open(newline="") as file:
        header, *rows = csv.reader(file)
    assert header == ["ID", "Label"]
    assert {value for _, value in rows} <= {"0", "1"}
    names = [name.rsplit("_", 1)[0] for name, _ in rows]
    assert set(names) == {path.stem for path in (data / "stage_2_train").glob("*.dcm")}
    assert set(Counter(names).values()) == {6}
    assert [name.rsplit("_", 1)[1] for name, _ in rows[:6]] == list(LABELS)
    label = {name: int(value) for name, value in rows}
    for name in set(names):
        assert label[f"{name}_any"] == max(label[f"{name}_{subtype}"] for subtype in SUBTYPES)


def test_marker_says_synthetic(data: Path) -> None:
    marker = json.loads((data / "phantom.json").read_text())
    assert marker["synthetic"] is True
    assert (marker["seed"], marker["patients"]) == (SEED, 2)


def test_encodings_of_rsna_all_occur() -> None:
    rng = np.random.default_rng(0)
    drawn = [random_encoding(rng) for _ in range(1000)]
    assert {(e.signed, e.intercept) for e in drawn} == {
        (True, -1024),
        (True, 0),
        (False, -1024),
        (False, -1000),
    }
    assert 400 < sum(e.signed for e in drawn) < 600
    assert {e.implicit for e in drawn} == {True, False}
    assert ["00036", "00036"] in [e.level for e in drawn]
    assert "30" in [e.level for e in drawn]


@pytest.mark.parametrize("signed", [True, False])
@pytest.mark.parametrize("intercept", [-1024, -1000, 0])
@pytest.mark.parametrize("implicit", [True, False])
def test_stored_pixels_are_the_hu(tmp_path: Path, signed: bool, intercept: int, implicit: bool) -> None:
    if intercept == 0 and not signed:
        pytest.skip("an unsigned file with intercept 0 can't hold air")
    scan = random_scan(np.random.default_rng(0))
    hu = np.linspace(-1000, 3000, 512 * 512, dtype=np.float32).reshape(1, 512, 512)
    encoding = Encoding(signed, intercept, implicit, "40", "80")
    ((name, _),) = write_study(tmp_path, hu, np.zeros((1, 6), np.uint8), scan, encoding, "rsna", (0, 0, 0))
    dataset = read(tmp_path / "stage_2_train" / f"{name}.dcm")
    assert dataset.file_meta.TransferSyntaxUID.is_implicit_VR == implicit
    read_hu = dataset.pixel_array.astype(float) + float(dataset.RescaleIntercept)
    field = np.hypot(*(np.mgrid[:512, :512] - 255.5)) <= 256
    inside = field if signed and scan.round_field else np.ones_like(field)
    assert np.abs(read_hu - hu[0])[inside].max() <= 0.5
    assert dataset.pixel_array.dtype == (np.int16 if signed else np.uint16)
    if signed and scan.round_field:
        assert (dataset.pixel_array[~field] == -2000).all()


def test_labels_are_those_of_the_lesion_mask(studies: dict[str, Study]) -> None:
    for subtype, study in studies.items():
        for k in range(5):
            area = (study.lesion & (1 << k) > 0).sum(axis=(1, 2)) * study.scan.pixel**2
            assert np.array_equal(study.labels[:, k], area >= phantom.VISIBLE_MM2)
        assert np.array_equal(study.labels[:, 5], study.labels[:, :5].max(axis=1))
        assert study.labels[:, SUBTYPES.index(subtype)].any()
        assert not study.labels[:, 5].all()


def test_a_healthy_patient_has_no_lesion() -> None:
    study = make_study(np.random.default_rng(1), None, thickness=10)
    assert not study.lesion.any()
    assert not study.labels.any()


def test_blood_is_between_50_and_90_hu(studies: dict[str, Study]) -> None:
    for subtype, study in studies.items():
        mask = study.lesion & (1 << SUBTYPES.index(subtype)) > 0
        core = ndimage.binary_erosion(mask, np.ones((1, 3, 3)))
        assert 50 <= np.median(study.hu[core]) <= 90, subtype
        assert np.median(study.hu[mask]) > 45, subtype


def test_lesions_go_on_in_neighbouring_slices(studies: dict[str, Study]) -> None:
    for subtype in ("epidural", "subdural", "intraparenchymal"):
        study = studies[subtype]
        mask = ndimage.binary_opening(study.lesion & (1 << SUBTYPES.index(subtype)) > 0, np.ones((1, 5, 5)))
        parts, number = ndimage.label(mask, np.ones((3, 3, 3)))
        sizes = np.bincount(parts.ravel())[1:]
        slices = np.flatnonzero((parts == 1 + sizes.argmax()).any(axis=(1, 2)))
        assert number >= 1
        assert len(slices) >= 3, subtype
        assert np.array_equal(np.diff(slices), np.ones(len(slices) - 1))


def test_extra_axial_blood_lies_on_the_bone_and_other_blood_does_not(studies: dict[str, Study]) -> None:
    def next_to_bone(subtype: str) -> float:
        study = studies[subtype]
        mask = study.lesion & (1 << SUBTYPES.index(subtype)) > 0
        worst = mask.sum(axis=(1, 2)).argmax()
        bone = ndimage.binary_dilation(study.hu[worst] > 300, iterations=5)
        rim = mask[worst] & ~ndimage.binary_erosion(mask[worst])
        return float((rim & bone).sum() / rim.sum())

    assert next_to_bone("epidural") > 0.25
    assert next_to_bone("subdural") > 0.25
    assert next_to_bone("intraventricular") < 0.05


def test_blood_on_the_tentorium_lies_on_it() -> None:
    lesion = Lesion("subdural", "tentorium", (1.0, 45.0, -10.0), (6.0, 0.0, 24.0), 65.0, 2.0)
    scan = replace(random_scan(np.random.default_rng(0)), rotation=(0.0, 0.0, 0.0), offset=(0.0, 0.0))
    scan = replace(scan, gantry_tilt=0.0)
    head, _ = phantom._patient(np.random.default_rng(1), None)
    study = phantom._image(head, [lesion], scan)
    z, y, x = np.nonzero(study.lesion)
    x, y = (x - 255.5) * scan.pixel, (y - 255.5) * scan.pixel
    z = z * scan.spacing + scan.first
    assert x.min() > -1 and y.min() > 0  # behind and on its side
    above = z - tentorium_height(x, y)  # where the brain is not bent
    assert len(z) > 1000 and above.min() > -8 and above.max() < 14


def test_brightness_under_the_skull_falls_inwards() -> None:
    """Partial volume and beam hardening, as in real slices: bright at the bone, even in the depth."""
    scan = replace(random_scan(np.random.default_rng(4)), blur=0.8, cupping=10.0, reach=7.0)
    head, _ = phantom._patient(np.random.default_rng(5), None)
    hu = scan_slice(head, [], scan, round((20 - scan.first) / scan.spacing), None)[0]
    bone = hu > 300
    inside = ndimage.binary_fill_holes(bone) & ~bone
    depth = ndimage.distance_transform_edt(inside) * scan.pixel
    rings = [np.median(hu[inside & (depth >= a) & (depth < b)]) for a, b in ((1, 2), (3, 6), (20, 30))]
    assert rings[0] > rings[1] + 5 > rings[2] + 5
    assert 35 < rings[0] < 100


def test_attenuation_of_tissue_is_that_of_a_head() -> None:
    study = make_study(np.random.default_rng(2), None, thickness=10)
    z = study.scan.first + study.scan.thickness * np.arange(len(study.hu))
    middle = study.hu[np.abs(z - 20).argmin()]
    smooth = ndimage.gaussian_filter(middle, 3)
    brain = ndimage.binary_erosion((smooth > 5) & (smooth < 50), iterations=6)
    assert brain.sum() * study.scan.pixel**2 > 8000
    assert 22 < np.median(middle[brain]) < 38
    noise = (middle - ndimage.gaussian_filter(middle, 4))[brain]
    assert 1.5 < 1.4826 * np.median(np.abs(noise)) < 6.5
    assert np.percentile(middle[middle > 300], 95) > 900
    assert abs(np.median(middle[:40, :40]) + 1000) < 30 or study.scan.round_field


def test_the_ends_of_a_scan_are_bone_and_air(studies: dict[str, Study]) -> None:
    slices = np.concatenate([study.hu for study in studies.values()])
    bone = (slices > 300).sum(axis=(1, 2))
    soft = ((slices > 0) & (slices < 80)).sum(axis=(1, 2))
    assert (bone < 3000).any()  # beyond the vertex
    assert ((bone > 4000) & (soft < bone / 2)).any()  # the vertex itself
    assert (soft > 3 * bone).any()  # brain


def test_of_ten_patients_five_bleed_each_from_another_subtype() -> None:
    for block in range(5):
        leads = Counter(phantom._lead_subtype(SEED, 10 * block + k) for k in range(10))
        assert leads == {None: 5, **dict.fromkeys(SUBTYPES, 1)}


def test_the_same_set_is_left_alone_and_another_is_refused(data: Path, tmp_path: Path) -> None:
    before = {p: p.stat().st_mtime_ns for p in data.rglob("*")}
    assert not write_phantoms(data, 2, SEED, thickness=THICKNESS)
    with pytest.raises(InputError, match="already exists") as caught:
        write_phantoms(data, 3, SEED, thickness=THICKNESS)
    assert caught.value.reason == "output-exists"
    assert {p: p.stat().st_mtime_ns for p in data.rglob("*")} == before
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("do not lose")
    with pytest.raises(InputError, match="already exists"):
        write_phantoms(tmp_path / "mine", 1, 0)
    assert (tmp_path / "mine" / "thesis.txt").read_text() == "do not lose"


def test_a_failure_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(task: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(phantom, "_write_patient", full)
    with pytest.raises(InputError, match="No space left") as caught:
        write_phantoms(tmp_path / "out", 2, 0, 1)
    assert caught.value.reason == "cannot-write"
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"patients": 0}, "patients must be"),
        ({"headers": "nhs"}, "headers must be"),
        ({"thickness": 0}, "thickness"),
        ({"spacing": -1}, "spacing"),
    ],
)
def test_bad_arguments_say_what_was_expected(tmp_path: Path, change: dict, said: str) -> None:
    with pytest.raises(InputError, match=said) as caught:
        write_phantoms(**({"out": tmp_path / "x", "patients": 1, "seed": 0} | change))
    assert caught.value.reason == "bad-argument"
    assert not list(tmp_path.iterdir())


def test_command_says_that_the_set_is_there(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--out", str(data), "--patients", "2", "--seed", str(SEED), "--thickness", "20"]) == 0
    assert "already" in capsys.readouterr().out


def test_hospital_headers_are_valid(tmp_path: Path) -> None:
    write_phantoms(tmp_path / "pacs", 1, SEED, 1, headers="hospital", thickness=20)
    paths = sorted((tmp_path / "pacs").rglob("*.dcm"))
    datasets = [pydicom.dcmread(path) for path in paths]  # warnings are errors: every UID is valid
    assert {path.parent.parent.parent for path in paths} == {tmp_path / "pacs"}
    first = datasets[0]
    assert first.SOPClassUID == pydicom.uid.CTImageStorage
    assert all(d.file_meta.MediaStorageSOPInstanceUID == d.SOPInstanceUID for d in datasets)
    assert len({d.SOPInstanceUID for d in datasets}) == len(datasets)
    assert {d.FrameOfReferenceUID for d in datasets} == {first.FrameOfReferenceUID}
    assert list(first.ImageType) == ["ORIGINAL", "PRIMARY", "AXIAL"]
    assert str(first.PatientName).startswith("PHANTOM^")
    assert float(first.SliceThickness) == 20
    with (tmp_path / "pacs" / "labels.csv").open(newline="") as file:
        names = {row["ID"].rsplit("_", 1)[0] for row in csv.DictReader(file)}
    assert names == {d.SOPInstanceUID for d in datasets}


def test_no_framework_is_loaded() -> None:
    code = (
        "import sys, ich_keras.ct.phantom; print({'tensorflow', 'keras', 'jax', 'torch'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
