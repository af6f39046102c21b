"""Whose a file is, and whether another holds the same slice: identifiers of a header alone don't say."""

import hashlib
import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace

from ich_keras.ct import elements
from ich_keras.ct.dicom import pseudonym
from ich_keras.errors import SliceError
from ich_keras.inference.results import File, Skipped


def patients_of(files: Sequence[File]) -> tuple[dict[str, list[File]], dict[str, int]]:
    """Groups the files of one study UID by patient: by ID, and where that is empty by name and birth date.

    A file without an ID is counted as the one patient's whose name it has, or where it has no name and all
    others are one patient's, as that patient's. Files that name no study are not.

    Returns:
        The files by patient, and how many files were counted so.
    """
    groups: dict[str, list[File]] = defaultdict(list)
    persons: dict[str, set[str]] = defaultdict(set)
    for file in files:
        if file.description.patient:
            groups[file.description.patient].append(file)
            persons[file.description.person].add(file.description.patient)
    joined: dict[str, int] = defaultdict(int)
    nobody = []
    for file in files:
        description = file.description
        if description.patient:
            continue
        if not description.person:
            nobody.append(file)
        elif description.study and len(persons[description.person]) == 1:
            (patient,) = persons[description.person]
            groups[patient].append(file)
            joined[patient] += 1
        else:
            groups[description.person].append(file)
    if nobody:
        alone = len(groups) == 1 and nobody[0].description.study
        patient = next(iter(groups)) if alone else ""
        groups[patient] += nobody
        if alone:
            joined[patient] += len(nobody)
    return groups, joined


def without_copies(files: Sequence[File]) -> tuple[list[File], list[Skipped], bool]:
    """Leaves out files that hold the same slice as another.

    A SOP instance UID alone says nothing: some anonymisers give all slices one. A copy has its series, place,
    matrix, rescale and pixel bytes as well; others get an instance of their own.

    Returns:
        The files to read, the copies, and whether different slices carry one UID.
    """
    read: list[File] = []
    copies: list[Skipped] = []
    first: dict[tuple, File] = {}
    pixels: dict[tuple, set[str]] = {}
    instances: set[str] = set()
    shared = False
    for file in files:
        description, header = file.description, file.header
        assert header is not None
        if not description.instance:
            read.append(file)
            continue
        place = (
            *(description.instance, description.series, header.position),
            *(header.rows, header.columns, header.slope, header.intercept),
        )
        if place in first and all(map(math.isfinite, header.position)):
            known = pixels.setdefault(place, {_pixels(first[place])})
            digest = _pixels(file)
            if digest and digest in known:
                detail = "another file holds the same SOP instance, and is read"
                copies.append(Skipped(file.source, "duplicate-file", detail))
                continue
            known.add(digest)
        first.setdefault(place, file)
        if description.instance in instances:
            shared = True
            instance = pseudonym(f"{description.instance}/{file.source.path}")
            file = replace(file, description=replace(description, instance=instance))
        instances.add(description.instance)
        read.append(file)
    return read, copies, shared


def _pixels(file: File) -> str:
    """The sha256 of a file's pixel bytes as they are stored, "" where they can't be read."""
    try:
        with file.source.open() as (opened, size):
            data = elements.find_elements(opened, size, ()).pixel_bytes()
    except (SliceError, OSError):
        return ""
    return hashlib.sha256(data).hexdigest()
