"""DICOMweb against a real Orthanc, and against a server that misbehaves."""

import base64
import io
import itertools
import json
import shutil
import socket
import ssl
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np
import pydicom
import pytest
import requests
from dicomweb_client import DICOMwebClient
from pydicom.uid import generate_uid

import predict
from ich_keras.ct.elements import open_regular
from ich_keras.ct.phantom import write_phantoms
from ich_keras.errors import InputError
from ich_keras.inference import dicomweb
from ich_keras.inference.dicom_output import write_dicom
from ich_keras.inference.dicomweb import fetch_study, store
from ich_keras.inference.results import SliceResult, Source, StudyResult
from ich_keras.labels import LABELS
from ich_keras.models.engines import Engine

ORTHANC = shutil.which("Orthanc", path="/usr/sbin:/usr/bin:/usr/local/sbin")
PLUGIN = next(
    (
        path
        for folder in ("/usr/share/orthanc/plugins", "/usr/lib/orthanc")
        for path in sorted(Path(folder).glob("libOrthancDicomWeb.so*"))
    ),
    None,
)
STUDY, SERIES, INSTANCE = "1.2.3.4", "1.2.3.4.5", "1.2.3.4.5.6"
USER, PASSWORD = "radiology", "p\u00e4ssword"


@pytest.fixture(autouse=True)
def no_login(monkeypatch, tmp_path):
    """The user's own login and proxies stay out of the tests."""
    for name in ("TOKEN", "USER", "PASSWORD"):
        monkeypatch.delenv(f"ICH_DICOMWEB_{name}", raising=False)
    for name in ("http_proxy", "https_proxy", "all_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))


@pytest.fixture(scope="module")
def slices(tmp_path_factory) -> list[Path]:
    folder = tmp_path_factory.mktemp("dicomweb") / "phantoms"
    write_phantoms(folder, 1, 0, workers=1, headers="hospital", thickness=40.0)
    return sorted(next((folder / "PHANTOM0000").iterdir()).glob("*.dcm"))


# A real server


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


@pytest.fixture(scope="module")
def orthanc(tmp_path_factory) -> Iterator[str]:
    """The DICOMweb URL of an empty Orthanc that asks for a login."""
    if ORTHANC is None or PLUGIN is None:
        pytest.skip("no Orthanc with its DICOMweb plugin: apt-get install orthanc orthanc-dicomweb")
    folder, port = tmp_path_factory.mktemp("orthanc"), free_port()
    settings = {
        "StorageDirectory": str(folder / "storage"),
        "IndexDirectory": str(folder / "storage"),
        "TemporaryDirectory": str(folder / "temporary"),
        "Plugins": [str(PLUGIN)],
        "HttpPort": port,
        "DicomServerEnabled": False,
        "RemoteAccessAllowed": False,
        "AuthenticationEnabled": True,
        "RegisteredUsers": {USER: PASSWORD, "other": "other"},
        "DicomWeb": {"Enable": True, "Root": "/dicom-web/", "EnableWado": False},
    }
    (folder / "temporary").mkdir()
    (folder / "orthanc.json").write_text(json.dumps(settings))
    with open(folder / "log", "wb") as log:
        process = subprocess.Popen([ORTHANC, folder / "orthanc.json"], stdout=log, stderr=log)
    try:
        for _ in range(600):
            try:
                process.wait(0.1)
                pytest.fail(f"Orthanc ended: {(folder / 'log').read_text()[-2000:]}")
            except subprocess.TimeoutExpired:
                pass
            with socket.socket() as one:
                if one.connect_ex(("127.0.0.1", port)) == 0:
                    break
        yield f"http://127.0.0.1:{port}/dicom-web"
    finally:
        process.kill()
        process.wait()


@pytest.fixture
def login(monkeypatch):
    monkeypatch.setenv("ICH_DICOMWEB_USER", USER)
    monkeypatch.setenv("ICH_DICOMWEB_PASSWORD", PASSWORD)


def client_of(url: str) -> DICOMwebClient:
    session = requests.Session()
    session.auth = USER, PASSWORD.encode()
    return DICOMwebClient(url, session=session)


def result_of(files: list[Path]) -> StudyResult:
    row = np.array([0.1, 0.2, 0.93, 0.3, 0.4, 0.95], np.float32)
    entries = [
        SliceResult(f"h{i}", Source(file.name, partial(open_regular, file)), float(i), {"probability": row})
        for i, file in enumerate(files)
    ]
    return StudyResult(
        id="hstudy",
        patient="hpatient",
        slices=tuple(entries),
        skipped=(),
        scores={"max": row.astype(float), "mean_top3": row.astype(float)},
        thresholds=np.full(6, 0.9),
        threshold_source="a test",
        flagged=("intraventricular", "any"),
        key_slices={"intraventricular": (1,), "any": (1, 2)},
        maps={},
        model={},
        model_sha256="0" * 64,
        seconds=1.0,
    )


def test_from_orthanc_to_results_and_back(orthanc, slices, login, tmp_path):
    study = pydicom.dcmread(slices[0]).StudyInstanceUID
    with pytest.raises(InputError) as error:
        fetch_study(orthanc, study, tmp_path / "before")
    assert error.value.reason == "study-not-found"
    store(orthanc, slices)

    steps = []
    assert fetch_study(orthanc, study, tmp_path / "fetched", progress=lambda *at: steps.append(at)) == len(
        slices
    )
    assert steps == [(i + 1, len(slices)) for i in range(len(slices))]
    fetched = {one.SOPInstanceUID: one for one in map(pydicom.dcmread, (tmp_path / "fetched").iterdir())}
    assert len(fetched) == len(slices)
    for file in slices:
        sent = pydicom.dcmread(file)
        assert (fetched[sent.SOPInstanceUID].pixel_array == sent.pixel_array).all()
        assert sent.SOPInstanceUID not in "".join(path.name for path in (tmp_path / "fetched").iterdir())

    result = result_of(sorted((tmp_path / "fetched").iterdir()))
    assert write_dicom(result, tmp_path / "results", sr=True, sc=True) == ""
    files = sorted((tmp_path / "results").iterdir())
    # Twice, as after a resumed run: the archive has each once.
    store(orthanc, files)
    store(orthanc, files)
    client = client_of(orthanc)
    found = client.search_for_instances(study_instance_uid=study)
    modalities = [row["00080060"]["Value"][0] for row in found]
    assert sorted(modalities) == ["CT"] * len(slices) + ["OT", "OT", "SR"]

    report = pydicom.dcmread(next(file for file in files if file.name.startswith("report-")))
    again = client.retrieve_instance(study, report.SeriesInstanceUID, report.SOPInstanceUID)
    assert again == report
    # What we stored there is not read as a scan.
    assert fetch_study(orthanc, study, tmp_path / "again") == len(slices)


def test_orthanc_refuses_a_wrong_login(orthanc, slices, monkeypatch, tmp_path, caplog):
    for user, password in ((None, None), (USER, "wrong")):
        if user:
            monkeypatch.setenv("ICH_DICOMWEB_USER", user)
            monkeypatch.setenv("ICH_DICOMWEB_PASSWORD", password)
        for act in (
            lambda: fetch_study(orthanc, STUDY, tmp_path / "out"),
            lambda: store(orthanc, slices[:1]),
        ):
            with pytest.raises(InputError) as error:
                act()
            assert error.value.reason == "login-refused"
            assert "ICH_DICOMWEB_USER" in str(error.value)
            assert "wrong" not in str(error.value)
    assert not (tmp_path / "out").exists()


def test_orthanc_takes_the_login_of_netrc(orthanc, tmp_path):
    (tmp_path / "netrc").write_text("machine 127.0.0.1 login other password other\n")
    with pytest.raises(InputError) as error:
        fetch_study(orthanc, STUDY, tmp_path / "out")
    assert error.value.reason == "study-not-found"


def test_a_wrong_path_on_orthanc(orthanc, slices, login, tmp_path):
    with pytest.raises(InputError) as error:
        fetch_study(orthanc + "x", STUDY, tmp_path / "out")
    assert error.value.reason == "study-not-found"
    with pytest.raises(InputError) as error:
        store(orthanc + "x", slices[:1])
    assert error.value.reason in ("study-not-found", "bad-answer")


def stand_in() -> Engine:
    """A model that finds hemorrhage in every third slice."""
    counted = itertools.count()

    def run(hu: np.ndarray, explain: bool) -> dict[str, np.ndarray]:
        values = [[0.9 if next(counted) % 3 == 1 else 0.1] * len(LABELS) for _ in hu]
        return {name: np.array(values, np.float32) for name in ("probability", "tiny300")}

    metadata = {"labels": list(LABELS), "arms": {"tiny300": {}}, "synthetic": True}
    return Engine("openvino", metadata, "1" * 64, run)


@pytest.fixture
def run_predict(monkeypatch, tmp_path):
    """run_predict(url, study, out, ...) -> the exit code of predict.py, with a stand-in for the model."""
    monkeypatch.setattr("ich_keras.models.engines.load_engine", lambda *_: stand_in())

    def run(url: str, study: str, out: Path, *more: str) -> int:
        arguments = ["--dicomweb", url, "--study", study, "--model", str(tmp_path), "--engine", "openvino"]
        return predict.main([*arguments, "--out", str(out), *more])

    return run


def test_predict_fetches_and_stores(orthanc, slices, login, run_predict, tmp_path, capfd):
    study = pydicom.dcmread(slices[0]).StudyInstanceUID
    store(orthanc, slices)
    client = client_of(orthanc)
    before = len(client.search_for_instances(study_instance_uid=study))
    out = tmp_path / "out"
    assert run_predict(orthanc, study, out, "--store", "--dicom-sr", "--dicom-sc") == 0
    (entry,) = json.loads((out / "studies.json").read_text())["studies"]
    files = [out / entry["study"] / name for name in entry["dicom"]["files"]]
    assert entry["dicom"]["reason"] == "" and entry["flagged"] == list(LABELS)
    found = {row["00080018"]["Value"][0] for row in client.search_for_instances(study_instance_uid=study)}
    assert len(found) == before + len(files)
    for file in files:
        assert pydicom.dcmread(file).SOPInstanceUID in found
    # Fetched again, the study is the same: nothing is left to predict, and the archive has each object once.
    assert run_predict(orthanc, study, out, "--store", "--dicom-sr", "--dicom-sc", "--resume") == 0
    assert len(client.search_for_instances(study_instance_uid=study)) == before + len(files)
    (again,) = json.loads((out / "studies.json").read_text())["studies"]
    assert again["seconds"] == entry["seconds"]
    said = "".join(capfd.readouterr()) + "".join(path.name for path in out.rglob("*"))
    assert study not in said and "PHANTOM0" not in said
    assert study not in (out / "report.html").read_text() + (out / "studies.json").read_text()


def test_predict_keeps_the_results_where_they_can_not_be_stored(ct, run_predict, tmp_path, capfd):
    def answer(request):
        if request.command == "POST":
            request.connection.close()
        else:
            one_instance(lambda r: send(r, multipart(ct), MULTIPART))(request)

    with serving(answer) as url:
        # --store alone means the report.
        assert run_predict(url, STUDY, tmp_path / "out", "--store", "--dicomweb-timeout", "5") == 1
    assert "[no-answer]" in capfd.readouterr().err
    (entry,) = json.loads((tmp_path / "out" / "studies.json").read_text())["studies"]
    assert [name[:7] for name in entry["dicom"]["files"]] == ["report-"]
    with serving(status(404)) as url, pytest.raises(InputError):
        run_predict(url, STUDY, tmp_path / "other")
    assert not (tmp_path / "other").exists()


# A server that misbehaves

Handler = Callable[[BaseHTTPRequestHandler], None]


@contextmanager
def serving(answer: Handler, certificate: Path | None = None) -> Iterator[str]:
    """A server on loopback whose every request `answer` handles."""

    class Server(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            answer(self)

        def do_POST(self) -> None:
            self.body = self.rfile.read(int(self.headers["Content-Length"]))
            answer(self)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Server)
    server.handle_error = lambda *_: None  # The client hangs up on purpose.
    scheme = "http"
    if certificate:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate)
        server.socket = context.wrap_socket(server.socket, server_side=True)
        scheme = "https"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield f"{scheme}://127.0.0.1:{server.server_port}/dicom-web"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def send(
    request: BaseHTTPRequestHandler,
    body: bytes = b"",
    content_type: str = "application/dicom+json",
    status: int = 200,
    length: int | None = None,
    headers: dict[str, str] | None = None,
) -> None:
    request.send_response(status)
    for name, value in (headers or {}).items():
        request.send_header(name, value)
    request.send_header("Content-Type", content_type)
    request.send_header("Content-Length", str(len(body) if length is None else length))
    request.end_headers()
    request.wfile.write(body)


def row(modality: str = "CT") -> dict:
    return {
        "00080060": {"vr": "CS", "Value": [modality]},
        "0020000E": {"vr": "UI", "Value": [SERIES]},
        "00080018": {"vr": "UI", "Value": [INSTANCE]},
    }


def one_instance(last: Handler, rows: list[dict] | None = None) -> Handler:
    """Finds one instance by QIDO-RS; `last` answers for it."""

    def answer(request: BaseHTTPRequestHandler) -> None:
        if request.path.partition("?")[0].endswith(("/series", "/instances")):
            send(request, json.dumps([row()] if rows is None else rows).encode())
        else:
            last(request)

    return answer


def multipart(content: bytes, end: bytes = b"\r\n--x--\r\n") -> bytes:
    return b"--x\r\nContent-Type: application/dicom\r\n\r\n" + content + end


MULTIPART = 'multipart/related; type="application/dicom"; boundary=x'


@pytest.fixture(scope="module")
def ct(slices, tmp_path_factory) -> bytes:
    """A small slice with the UIDs of `row`."""
    dataset = pydicom.dcmread(slices[0])
    dataset.StudyInstanceUID, dataset.SeriesInstanceUID, dataset.SOPInstanceUID = STUDY, SERIES, INSTANCE
    dataset.file_meta.MediaStorageSOPInstanceUID = INSTANCE
    dataset.Rows = dataset.Columns = 16
    dataset.PixelData = bytes(512)
    file = tmp_path_factory.mktemp("ct") / "one.dcm"
    dataset.save_as(file)
    return file.read_bytes()


def test_a_good_answer_in_either_form(ct, tmp_path):
    for name, body, content_type in (
        ("multipart", multipart(ct), MULTIPART),
        ("single", ct, "application/dicom"),
    ):
        with serving(one_instance(lambda r, b=body, c=content_type: send(r, b, c))) as url:
            assert fetch_study(url, STUDY, tmp_path / name) == 1
        (file,) = (tmp_path / name).iterdir()
        assert file.read_bytes() == ct
        assert INSTANCE not in file.name
        # So that a run can be gone on with after fetching again.
        assert file.stat().st_mtime == 0


def test_a_token_wins_over_netrc_and_is_not_sent_elsewhere(ct, tmp_path, monkeypatch):
    seen = []
    (tmp_path / "netrc").write_text("machine 127.0.0.1 login a password b\n")
    monkeypatch.setenv("ICH_DICOMWEB_TOKEN", "abc")

    def answer(request):
        seen.append(request.headers["Authorization"])
        one_instance(lambda r: send(r, multipart(ct), MULTIPART))(request)

    with serving(answer) as url:
        fetch_study(url, STUDY, tmp_path / "out")
    assert set(seen) == {"Bearer abc"}


def pages(
    request: BaseHTTPRequestHandler,
    size: int,
    knows_offset: bool = True,
    count: int | str | None = None,
    headers: dict[str, str] | None = None,
) -> None:
    """`size` of five instances a page; `count` is what the series' row says, `headers` go with every page."""
    path, _, query = request.path.partition("?")
    if path.endswith("/series"):
        said = {} if count is None else {"00201209": {"vr": "IS", "Value": [count]}}
        rows, headers = [{**row(), **said}] if "offset=0" in query else [], None
    else:
        first = int(query.partition("offset=")[2].partition("&")[0]) if knows_offset else 0
        rows = [{"00080018": {"vr": "UI", "Value": [f"1.2.{i}"]}} for i in range(5)][first : first + size]
    send(request, json.dumps(rows).encode(), status=200 if rows else 204, headers=headers)


def search(answer: Handler) -> list[tuple[str, str]]:
    with serving(answer) as url, dicomweb._Server(url, 5) as server:
        return server.ct_instances(STUDY)


@pytest.mark.parametrize(("size", "knows_offset"), [(2, True), (5, True), (5, False)])
def test_all_pages_of_a_search_are_read_and_no_row_twice(size, knows_offset):
    assert search(lambda r: pages(r, size, knows_offset)) == [(SERIES, f"1.2.{i}") for i in range(5)]


@pytest.mark.parametrize(
    "said",
    [
        {"count": 5},
        {"count": "5"},
        {"headers": {"Warning": "299 test: There are 3 additional results that can be requested"}},
    ],
)
def test_a_server_that_sends_a_part_and_knows_no_offset_is_refused(said):
    with pytest.raises(InputError) as error:
        search(lambda r: pages(r, 2, False, **said))
    assert error.value.reason == "bad-answer"
    assert STUDY not in str(error.value)


def test_more_instances_than_the_series_had_are_all_fetched():
    # Some came in between the two searches.
    assert len(search(lambda r: pages(r, 5, count=4))) == 5
    assert len(search(lambda r: pages(r, 5, count="many"))) == 5


def test_a_ct_series_without_instances_is_refused():
    with pytest.raises(InputError, match="no instances") as error:
        search(lambda r: pages(r, 0))
    assert error.value.reason == "bad-answer"


def cut(request: BaseHTTPRequestHandler) -> None:
    send(request, multipart(b"half"), MULTIPART, length=100_000)


def hang(request: BaseHTTPRequestHandler) -> None:
    request.connection.recv(1)  # Until the client hangs up.


def status(code: int) -> Handler:
    return lambda request: send(request, b"Doe^Jane", "text/html", code)


BAD_ANSWERS = {
    "connection lost midway": (one_instance(cut), "no-answer"),
    "connection lost at once": (one_instance(lambda r: r.connection.close()), "no-answer"),
    "no answer in time": (one_instance(hang), "no-answer"),
    "login refused": (status(401), "login-refused"),
    "forbidden": (status(403), "login-refused"),
    "not found": (status(404), "study-not-found"),
    "no series": (one_instance(hang, []), "study-not-found"),
    "no CT": (one_instance(hang, [row("MR")]), "not-ct"),
    "server error": (status(500), "bad-answer"),
    "busy": (status(503), "bad-answer"),
    "a page, not JSON": (status(200), "bad-answer"),
    "JSON of another kind": (lambda r: send(r, b'["Doe"]'), "bad-answer"),
    "a UID that is a path": (
        one_instance(hang, [{**row(), "0020000E": {"vr": "UI", "Value": ["../../x"]}}]),
        "bad-answer",
    ),
    "not DICOM": (one_instance(lambda r: send(r, multipart(b"Doe" * 99), MULTIPART)), "bad-answer"),
    "no multipart": (one_instance(lambda r: send(r, b"Doe", "text/html")), "bad-answer"),
    "no boundary": (one_instance(lambda r: send(r, multipart(b"Doe"), "multipart/related")), "bad-answer"),
    "empty": (one_instance(lambda r: send(r, b"", MULTIPART)), "bad-answer"),
}


@pytest.mark.parametrize("name", BAD_ANSWERS)
def test_a_bad_answer_is_a_clear_error_and_leaves_no_files(name, tmp_path, caplog, capfd):
    answer, reason = BAD_ANSWERS[name]
    with serving(answer) as url, pytest.raises(InputError) as error:
        fetch_study(url, STUDY, tmp_path / "out", timeout=0.3 if name == "no answer in time" else 20)
    assert error.value.reason == reason
    assert not list(tmp_path.iterdir())
    said = str(error.value) + caplog.text + "".join(capfd.readouterr())
    for secret in ("Doe", STUDY, SERIES, INSTANCE):
        assert secret not in said


def test_a_cut_or_strange_instance_is_refused(ct, tmp_path):
    for body in (
        multipart(ct, end=b""),
        multipart(ct[:-100]),
        multipart(ct.replace(INSTANCE.encode(), b"1.2.3.4.5.7")),
        multipart(ct.replace(STUDY.encode() + b"\0", b"1.2.3.9\0")),
    ):
        with serving(one_instance(lambda r, b=body: send(r, b, MULTIPART))) as url:
            with pytest.raises(InputError) as error:
                fetch_study(url, STUDY, tmp_path / "out")
            assert error.value.reason == "bad-answer"
    assert not list(tmp_path.iterdir())


def test_a_search_without_an_end_is_given_up(monkeypatch, tmp_path):
    monkeypatch.setattr(dicomweb, "MAX_ROWS", 20)
    counted = itertools.count()

    def answer(request):
        send(request, json.dumps([{**row(), "0020000E": {"Value": [f"1.2.{next(counted)}"]}}]).encode())

    with serving(answer) as url, pytest.raises(InputError) as error:
        fetch_study(url, STUDY, tmp_path / "out")
    assert error.value.reason == "bad-answer"


def test_an_endless_or_trickling_answer_is_given_up(monkeypatch, tmp_path):
    def endless(request):
        request.send_response(200)
        request.send_header("Content-Type", MULTIPART)
        request.end_headers()
        while True:
            request.wfile.write(bytes(1 << 16))

    monkeypatch.setattr(dicomweb, "MAX_ANSWER", 1 << 20)
    with serving(one_instance(endless)) as url, pytest.raises(InputError) as error:
        fetch_study(url, STUDY, tmp_path / "out")
    assert error.value.reason == "bad-answer"
    monkeypatch.setattr(dicomweb, "MAX_ANSWER", 1 << 40)
    monkeypatch.setattr(dicomweb, "SLOWEST", 0.01)
    with serving(one_instance(endless)) as url, pytest.raises(InputError) as error:
        fetch_study(url, STUDY, tmp_path / "out", timeout=10)
    assert error.value.reason == "no-answer"
    assert not list(tmp_path.iterdir())


def stored(count: int, failed: int = 0) -> bytes:
    reference = {"00081155": {"vr": "UI", "Value": [INSTANCE]}}
    answer = {"00081199": {"vr": "SQ", "Value": [reference] * count}}
    if failed:
        answer["00081198"] = {"vr": "SQ", "Value": [reference] * failed}
    return json.dumps(answer).encode()


STORE_ANSWERS = {
    "all": (lambda r: send(r, stored(2)), None),
    "with parameters": (
        lambda r: send(r, stored(2), "application/dicom+json; charset=utf-8"),
        None,
    ),
    "one failed": (lambda r: send(r, stored(1, 1), status=202), "not-stored"),
    "all failed": (lambda r: send(r, stored(0, 2), status=409), "not-stored"),
    "one forgotten": (lambda r: send(r, stored(1)), "not-stored"),
    "a page": (status(200), "bad-answer"),
    "nothing": (lambda r: send(r), "bad-answer"),
    "lost": (lambda r: r.connection.close(), "no-answer"),
    "refused": (status(401), "login-refused"),
    "busy": (status(503), "bad-answer"),
}


@pytest.mark.parametrize("name", STORE_ANSWERS)
def test_storing_succeeds_only_if_the_server_lists_all(name, ct, tmp_path):
    answer, reason = STORE_ANSWERS[name]
    files = [tmp_path / "1.dcm", tmp_path / "2.dcm"]
    for file in files:
        file.write_bytes(ct)
    bodies = []

    def remember(request):
        bodies.append(request.body)
        answer(request)

    with serving(remember) as url:
        if reason is None:
            store(url, files)
        else:
            with pytest.raises(InputError) as error:
                store(url, files)
            assert error.value.reason == reason
            assert INSTANCE not in str(error.value)
    # One request, with everything.
    assert len(bodies) == 1
    assert bodies[0].count(b"DICM") == 2


def test_a_large_body_is_sent_with_its_length(ct, tmp_path):
    dataset = pydicom.dcmread(io.BytesIO(ct))
    dataset.Rows = dataset.Columns = 1024
    dataset.PixelData = bytes(2 << 20)
    dataset.save_as(tmp_path / "large.dcm")
    lengths = []

    def answer(request):
        lengths.append(int(request.headers["Content-Length"]))
        send(request, stored(1))

    with serving(answer) as url:
        store(url, [tmp_path / "large.dcm"])
    assert len(lengths) == 1 and lengths[0] > 2 << 20


def test_the_certificate_is_checked(tmp_path, monkeypatch):
    if shutil.which("openssl") is None:
        pytest.skip("no openssl to make a certificate with")
    pem, key = tmp_path / "server.pem", tmp_path / "server.key"
    command = "openssl req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=127.0.0.1"
    command += f" -addext subjectAltName=IP:127.0.0.1 -keyout {key} -out {pem}"
    subprocess.run(command.split(), check=True, capture_output=True)
    both = tmp_path / "both.pem"
    both.write_text(key.read_text() + pem.read_text())
    monkeypatch.delenv("REQUESTS_CA_BUNDLE", raising=False)
    monkeypatch.delenv("CURL_CA_BUNDLE", raising=False)
    with serving(one_instance(hang, []), both) as url:
        with pytest.raises(InputError) as error:
            fetch_study(url, STUDY, tmp_path / "out")
        assert error.value.reason == "no-answer" and "REQUESTS_CA_BUNDLE" in str(error.value)
        monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(pem))
        with pytest.raises(InputError) as error:
            fetch_study(url, STUDY, tmp_path / "out")
        assert error.value.reason == "study-not-found"


def test_a_server_that_is_not_there(tmp_path):
    with pytest.raises(InputError) as error:
        fetch_study(f"http://127.0.0.1:{free_port()}/dicom-web", STUDY, tmp_path / "out")
    assert error.value.reason == "no-answer"


@pytest.mark.parametrize(
    "url",
    [
        "",
        "pacs.example/dicom-web",
        "ftp://pacs.example/",
        "http:///dicom-web",
        "http://pacs.example:port/",
        "http://pacs.example/?a=b",
        "http://doe:secret@pacs.example/dicom-web",
    ],
)
def test_a_url_that_is_none_or_holds_a_login(url, tmp_path):
    with pytest.raises(InputError) as error:
        fetch_study(url, STUDY, tmp_path / "out")
    assert error.value.reason == "bad-argument"
    assert "secret" not in str(error.value)


def test_other_arguments(tmp_path):
    for study, timeout in (("Doe", 5), ("1.2.03", 5), (STUDY, 0)):
        with pytest.raises(InputError) as error:
            fetch_study("http://127.0.0.1:1/", study, tmp_path / "out", timeout=timeout)
        assert error.value.reason == "bad-argument"
        assert study == STUDY or study not in str(error.value)


@pytest.mark.parametrize(
    ("url", "said"), [("http://pacs.example/dicom-web", True), ("https://pacs.example", False)]
)
def test_an_unencrypted_login_is_said(url, said, login, caplog):
    dicomweb.logger.addHandler(caplog.handler)
    try:
        dicomweb._Server(url, 5)
    finally:
        dicomweb.logger.removeHandler(caplog.handler)
    assert ("unencrypted" in caplog.text) == said
    assert PASSWORD not in caplog.text


def test_half_a_store_request_is_not_stored(orthanc, slices, tmp_path):
    """What a connection lost midway leaves at the archive."""
    files, uid = [], generate_uid()
    for number, file in enumerate(slices[:4]):
        dataset = pydicom.dcmread(file)
        dataset.StudyInstanceUID, dataset.SOPInstanceUID = uid, f"{uid[:50]}.{number}"
        dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
        dataset.save_as(tmp_path / file.name)
        files.append((tmp_path / file.name).read_bytes())
    body = b"".join(b"\r\n--x\r\nContent-Type: application/dicom\r\n\r\n" + content for content in files)
    login = base64.b64encode(f"{USER}:{PASSWORD}".encode()).decode()
    head = (
        f"POST /dicom-web/studies HTTP/1.1\r\nHost: 127.0.0.1\r\nAuthorization: Basic {login}\r\n"
        'Content-Type: multipart/related; type="application/dicom"; boundary=x\r\n'
        f"Content-Length: {len(body) + 7}\r\n\r\n"
    )
    port = urlsplit(orthanc).port
    with socket.create_connection(("127.0.0.1", port)) as connection:
        connection.sendall(head.encode() + body[: 3 * len(body) // 4])
        connection.shutdown(socket.SHUT_WR)
        while connection.recv(1 << 16):
            pass
    assert client_of(orthanc).search_for_instances(study_instance_uid=uid) == []
