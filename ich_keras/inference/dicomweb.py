"""A study from a DICOMweb server (PS3.18) and results back to it.

The login is ICH_DICOMWEB_TOKEN (a bearer token), or ICH_DICOMWEB_USER and ICH_DICOMWEB_PASSWORD, or what
`~/.netrc` has for the host: never an argument, which other users of the machine can read. Certificates are
checked; REQUESTS_CA_BUNDLE names a hospital's own authority.

A study UID identifies a patient: it is in no log, file name or message.
"""

import io
import logging
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from email.message import Message
from pathlib import Path
from urllib.parse import urlsplit

import pydicom
import requests
from dicomweb_client import DICOMwebClient

from ich_keras.ct import elements
from ich_keras.errors import InputError, SliceError
from ich_keras.files import fingerprint, whole_folder
from ich_keras.inference.dicom_source import is_uid, quiet

TIMEOUT = 60.0
"""Seconds to wait for the server's next bytes."""

SLOWEST = 30
"""An answer may take this many times the timeout in all."""

MAX_ANSWER = 256 << 20
"""Bytes of one answer; the largest CT slice has 64 MB."""

PAGE = 1000
"""Rows of a search asked for at once."""

MAX_ROWS = 100_000
"""A study with more series or a series with more instances is none."""

logger = logging.getLogger(__name__)

_LIBRARIES = ("dicomweb_client", "urllib3", "pydicom")
_SOP_INSTANCE, _STUDY = 0x0008_0018, 0x0020_000D
_STORE_ANSWERS = ("application/dicom+json", "application/json", "application/dicom+xml", "application/xml")
_DICOM = 'multipart/related; type="application/dicom"; transfer-syntax=*'


def fetch_study(
    url: str,
    study_uid: str,
    folder: Path,
    *,
    timeout: float = TIMEOUT,
    progress: Callable[[int, int], object] = lambda done, total: None,
) -> int:
    """Fetches a study's CT series by QIDO-RS and WADO-RS, one instance at a time.

    Args:
        url: of the DICOMweb service, such as `https://pacs.example/dicom-web`.
        study_uid: the StudyInstanceUID.
        folder: made with `<hash>.dcm` for each instance as the server has it, only if all came.
        timeout: seconds to wait for the server.
        progress: called with (instances here, instances in all).

    Returns:
        How many instances.

    Raises:
        InputError: bad-argument, no-answer, login-refused, study-not-found, not-ct, bad-answer.
    """
    if not is_uid(study_uid):
        raise InputError("bad-argument", "the study UID is not a valid UID: digits and dots, up to 64")
    with quiet(*_LIBRARIES), _Server(url, timeout) as server, whole_folder(folder) as temporary:
        instances = server.ct_instances(study_uid)
        for done, (series, instance) in enumerate(instances, 1):
            data = server.instance(study_uid, series, instance)
            file = temporary / f"{fingerprint(instance)[:16]}.dcm"
            file.write_bytes(data)
            # The same each time, so that a resumed run knows the file again.
            os.utime(file, (0, 0))
            progress(done, len(instances))
    return len(instances)


def store(url: str, files: Sequence[Path], *, timeout: float = TIMEOUT) -> None:
    """Stores DICOM files by one STOW-RS request, so that a lost connection stores none of them.

    Args:
        url: as for `fetch_study`.
        files: of one study, small enough to be sent from memory.
        timeout: seconds to wait for the server.

    Raises:
        InputError: bad-argument, no-answer, login-refused, bad-answer, not-stored.
    """
    with quiet(*_LIBRARIES), _Server(url, timeout) as server:
        server.store([pydicom.dcmread(file) for file in files])


class _Bearer(requests.auth.AuthBase):
    # A plain header would lose against an entry in ~/.netrc.
    def __init__(self, token: str):
        self._token = token

    def __call__(self, request: requests.PreparedRequest) -> requests.PreparedRequest:
        request.headers["Authorization"] = f"Bearer {self._token}"
        return request


class _Server:
    """A connection, whose errors are `InputError`s without identifiers."""

    def __init__(self, url: str, timeout: float):
        self._url = _checked(url)
        self._timeout = timeout
        self._session = requests.Session()
        self._session.auth = _login()
        self._session.hooks["response"] = [self._watch]
        self._status, self._warning = 0, ""
        host = urlsplit(url).hostname or ""
        if self._session.auth and url.startswith("http:") and not host.startswith(("127.", "localhost")):
            logger.warning("the login and the scan go to %s unencrypted; use https", host)
        if timeout <= 0:
            raise InputError("bad-argument", f"the timeout must be above 0 seconds, received {timeout:g}")
        # A longer body would be sent in chunks. Of one that is cut then, Orthanc stores what came of it;
        # of one with a length, nothing.
        self._client = DICOMwebClient(self._url, session=self._session, timeout=timeout, chunk_size=1 << 40)
        # It would try again after any error, and a body sent in chunks would be empty the second time.
        self._client.set_http_retry_params(retry=False)

    def __enter__(self) -> "_Server":
        return self

    def __exit__(self, *_: object) -> None:
        self._session.close()

    def ct_instances(self, study: str) -> list[tuple[str, str]]:
        """The study's CT instances: (series UID, SOP instance UID)."""
        series = dict(self._pages("series", "0020000E", study_instance_uid=study))
        if not series:
            raise InputError(
                "study-not-found", f"{self._url} has no such study; check the study UID and the archive"
            )
        wanted = [uid for uid, row in series.items() if _value(row, "00080060") in ("", "CT")]
        if not wanted:
            raise InputError("not-ct", f"none of the study's {len(series)} series is CT")
        found = []
        for one in wanted:
            search = {"study_instance_uid": study, "series_instance_uid": one}
            instances = [uid for uid, _ in self._pages("instances", "00080018", **search)]
            if not instances:
                raise self._bad("a CT series with no instances")
            # Number of Series Related Instances, where the server says it.
            expected = _value(series[one], "00201209")
            if expected.isdecimal() and len(instances) < int(expected):
                raise self._bad(f"{len(instances):,} of the {int(expected):,} instances of a series")
            found += [(one, instance) for instance in instances]
        return found

    def _pages(self, what: str, key: str, **search: str) -> Iterator[tuple[str, dict]]:
        """Rows of QIDO-RS (PS3.18 section 10.6), each once: (UID, row)."""
        find = getattr(self._client, f"search_for_{what}")
        seen: set[str] = set()
        while True:
            with self._translated():
                rows = find(limit=PAGE, offset=len(seen), **search)
                found = {_value(row, key): row for row in rows}
            # A server may send fewer rows than asked for, all of them, or, knowing no offset, the same again.
            new = {uid: row for uid, row in found.items() if uid not in seen}
            if not all(map(is_uid, new)):
                raise self._bad("rows without a valid UID")
            yield from new.items()
            seen.update(new)
            if len(seen) > MAX_ROWS:
                raise self._bad(f"more than {MAX_ROWS:,} rows")
            if not new:
                if self._warning.startswith("299"):
                    # More results than it sent (PS3.18 section 8.3.4.4), but never others.
                    raise self._bad(f"only some of the {what}, whatever page is asked for")
                return

    def instance(self, study: str, series: str, instance: str) -> bytes:
        """One instance as the server has it (PS3.18 section 10.4).

        Not by dicomweb-client, which parses what comes with pydicom, which inflates without a limit.
        """
        with self._translated():
            response = self._session.get(
                f"{self._url}/studies/{study}/series/{series}/instances/{instance}",
                headers={"Accept": _DICOM},
                timeout=self._timeout,
                stream=True,
            )
            response.raise_for_status()
            data = _only_part(response.headers.get("Content-Type", ""), response.content)
        if data is None:
            raise self._bad("no whole multipart message with a DICOM file")
        try:
            found = elements.find_elements(io.BytesIO(data), len(data), (_SOP_INSTANCE, _STUDY))
        except SliceError as error:
            raise self._bad(f"a file that is no DICOM or is cut ({error.reason})") from None
        if [found.values.get(tag, b"").strip(b"\0 ") for tag in (_STUDY, _SOP_INSTANCE)] != [
            study.encode(),
            instance.encode(),
        ]:
            raise self._bad("another instance than was asked for")
        return data

    def store(self, datasets: Sequence[pydicom.Dataset]) -> None:
        """All in one request (PS3.18 section 10.5)."""
        with self._translated():
            try:
                answer = self._client.store_instances(datasets)
            except requests.HTTPError as error:
                if error.response is not None and error.response.status_code == 409:
                    raise self._not_stored(len(datasets), len(datasets)) from None
                raise
        if not answer:
            raise self._bad(f"no list of what was stored (HTTP {self._status})")
        stored = len(answer.get("ReferencedSOPSequence", None) or ())
        if stored < len(datasets):
            raise self._not_stored(len(datasets) - stored, len(datasets))

    def _not_stored(self, failed: int, of: int) -> InputError:
        return InputError(
            "not-stored",
            f"{self._url} did not store {failed} of {of} results; storing again adds no second copy",
        )

    def _bad(self, what: str) -> InputError:
        return InputError("bad-answer", f"{self._url} sent {what}; check that it is a DICOMweb service")

    @contextmanager
    def _translated(self) -> Iterator[None]:
        """Errors of requests and of the client, whose messages have UIDs in them, as ours."""
        try:
            yield
        except requests.HTTPError as error:
            status = error.response.status_code if error.response is not None else 0
            if status in (401, 403):
                raise InputError(
                    "login-refused",
                    f"{self._url} refused the login (HTTP {status}); set ICH_DICOMWEB_USER and "
                    "ICH_DICOMWEB_PASSWORD, or ICH_DICOMWEB_TOKEN, or an entry in ~/.netrc",
                ) from None
            if status == 404:
                raise InputError(
                    "study-not-found",
                    f"{self._url} has no such study, or is not the path of a DICOMweb service (HTTP 404)",
                ) from None
            raise self._bad(f"HTTP {status}") from None
        except requests.exceptions.SSLError:
            raise InputError(
                "no-answer",
                f"the certificate of {self._url} can't be verified; name the file of your own authority in "
                "REQUESTS_CA_BUNDLE",
            ) from None
        except requests.Timeout:
            raise InputError(
                "no-answer", f"{self._url} took longer than {self._timeout:g} s; try again or wait longer"
            ) from None
        except requests.exceptions.JSONDecodeError:
            raise self._bad("something else than JSON") from None
        except requests.RequestException as error:
            raise InputError(
                "no-answer",
                f"{self._url} can't be reached, or the connection was lost ({type(error).__name__}); check "
                "the address and try again",
            ) from None
        except (ValueError, TypeError, KeyError, AttributeError, LookupError) as error:
            if isinstance(error, InputError):
                raise
            raise self._bad("something that can't be understood") from None

    def _watch(self, response: requests.Response, **_: object) -> None:
        """Bounds the size of an answer and the time it may take, however slowly it trickles."""
        self._status = response.status_code
        self._warning = response.headers.get("Warning", "").strip()
        media_type = response.headers.get("Content-Type", "").partition(";")[0].strip().lower()
        if media_type in _STORE_ANSWERS:
            # The client does not know the type with parameters behind it.
            response.headers["Content-Type"] = media_type
        chunks, end = response.iter_content, time.monotonic() + SLOWEST * self._timeout

        def bounded(chunk_size: int = 1, decode_unicode: bool = False) -> Iterator[bytes]:
            length = 0
            for chunk in chunks(chunk_size):
                length += len(chunk)
                if length > MAX_ANSWER:
                    raise self._bad(f"more than {MAX_ANSWER >> 20} MB at once")
                if time.monotonic() > end:
                    raise requests.Timeout
                yield chunk

        response.iter_content = bounded  # type: ignore[method-assign, assignment]


def _checked(url: str) -> str:
    try:
        parts = urlsplit(url)
        usable = parts.scheme in ("http", "https") and parts.hostname and not (parts.query or parts.fragment)
        port = parts.port
    except ValueError:
        usable = False
    if not usable or port == 0:
        raise InputError(
            "bad-argument", "the DICOMweb URL is not one; expected such as https://pacs.example/dicom-web"
        )
    if "@" in parts.netloc:
        raise InputError(
            "bad-argument",
            "the DICOMweb URL holds a login, which others can read; set ICH_DICOMWEB_USER and "
            "ICH_DICOMWEB_PASSWORD instead",
        )
    return url.rstrip("/")


def _login() -> requests.auth.AuthBase | None:
    if token := os.environ.get("ICH_DICOMWEB_TOKEN"):
        return _Bearer(token)
    if user := os.environ.get("ICH_DICOMWEB_USER"):
        password = os.environ.get("ICH_DICOMWEB_PASSWORD", "")
        return requests.auth.HTTPBasicAuth(user.encode(), password.encode())
    return None


def _value(row: dict, tag: str) -> str:
    """The first value of a text element in DICOM JSON (PS3.18 section F.2)."""
    values = row.get(tag, {}).get("Value") or [""]
    return str(values[0])


def _only_part(content_type: str, body: bytes) -> bytes | None:
    """The one part of a multipart message (RFC 2387), None unless it is whole."""
    header = Message()
    header["Content-Type"] = content_type
    if header.get_content_type() == "application/dicom":
        return body
    boundary = header.get_boundary()
    if header.get_content_type() != "multipart/related" or not boundary:
        return None
    mark = b"--" + boundary.encode("latin-1", "replace")
    start = body.find(mark)
    content = body.find(b"\r\n\r\n", start) + 4
    end = body.find(b"\r\n" + mark, content)
    if start < 0 or content < 4 or end < 0:
        return None
    return body[content:end]
