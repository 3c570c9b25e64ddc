"""Tell by a case's name which patient it shows, so that no patient is both trained on and scored.

Public data sets name the patient first and then the scan: `BraTS-GLI-00005-101`, `sub-01_ses-2`, `UPENN-GBM-00001_21`.
A name of no known scheme is taken for a patient of its own; those that look like several scans of one can be listed.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator

_GAP = r"[_\-. ]+"
_SCHEMES = re.compile(
    rf"""(?: brats(?:-[a-z]+)+-\d+                     # BraTS-GLI-00005-101, BraTS-MEN-RT-0001-1
           | brats1\d_[a-z\d]+_[a-z\d]+                # Brats18_CBICA_ABC_1, BraTS19_TCIA01_235_1
           | brats20_[a-z]+_\d+                        # BraTS20_Training_001
           | brats(?:20\d\d)?_\d+                      # BraTS2021_00006, BRATS_001 of the Decathlon
           | (?:upenn-gbm|ucsf-pdgm|ucsd-ptgbm|rhuh(?:-gbm)?)-\d+
           | tcga-[a-z\d]{{2}}-[a-z\d]{{4}}            # TCGA-06-0122_1999.01.17
           | sub-[^_]+                                 # BIDS
         )(?={_GAP}|$)""",
    re.IGNORECASE | re.VERBOSE,
)
"""The patient at the beginning of a name; whatever follows is the scan's."""
_OCCASION = re.compile(
    rf"""(?P<patient>.+?){_GAP}(?:
         (?: ses(?:s|sion)? | visit | time[-_. ]?point | tp | week | wk | month | day | year | date | follow[-_. ]?up
           | fu | base[-_. ]?line | initial | screening | recurren(?:t|ce) | progression | re[-_]?(?:scan|test) | repeat
           | (?:pre|post|intra)(?:[-_. ]?(?:op|operative|surgery|treatment|therapy|rt))?
         )(?: [-_. ]?\d[a-z\d]*(?:-\d+)? | -[a-z\d]+ )?                       # week-012, ses-pre, FU001d, visit1, post
       | (?: scan | exam | study | run | time | mri? | [tv] )[-_. ]?\d{{1,2}}[a-z]?              # scan2, t0, v01
       | (?:19|20)\d\d[-_. ]?(?:0[1-9]|1[0-2])[-_. ]?(?:0[1-9]|[12]\d|3[01])(?:[-_. t]\d{{4,6}})?        # 2019-03-01
       | \d\d[-_. ]\d\d[-_. ](?:19|20)\d\d                                                               # 03-01-2019
       )""",
    re.IGNORECASE | re.VERBOSE,
)
"""A name whose end tells when a patient was scanned, or which of the patient's scans it is."""
_YEAR = r"(?:19|20)\d\d"
_MARKED = (
    re.compile(rf"(.+?){_GAP}(\d{{1,3}}|{_YEAR}|(?!\d+$)[^_\-. ]+)"),  # P01-2, P01_left; longer numbers are cases'
    re.compile(r"(.*\d)([a-z]{1,6}\d{0,2})", re.IGNORECASE),  # case12a, P01v2
)
"""A name that may be a patient's and a mark of the scan."""
_NOBODY = frozenset(
    """
    brain brats case data dataset exam gbm glioma head hgg id image img lgg mr mri participant pat patient patientid pt
    scan set study sub subj subject test testing train training tumor tumour val valid validation vol volume
    """.split()  # noqa: SIM905
)
"""Words that name no patient: the patient is what follows them."""
_PERSON = re.compile(r"(?:case|pat|patient|subj?|subject|participant|pt?|id)[_\-. ]*\d+", re.IGNORECASE)
"""A name that is a patient's number, and not the number of a part of a data set."""
FEW = 9
"""Most scans of one patient: if more names begin alike, the data set is numbered."""


def patient_of(case_id: str) -> str:
    """The patient that a case shows: the name without what tells the patient's scans apart, or all of it.

    BraTS-GLI-00005-101 is of BraTS-GLI-00005, P01_visit2_2019-03-01 of P01; BraTS20_Training_001 is a patient.
    """
    scheme = _SCHEMES.match(case_id)
    name = scheme[0] if scheme else case_id
    while (occasion := _OCCASION.fullmatch(name)) and not _names_nobody(occasion["patient"]):
        name = occasion["patient"]
    return name


def doubtful(case_ids: Iterable[str]) -> list[list[str]]:
    """Groups of cases that `patient_of` takes for different patients, though their names look like scans of one.

    Such are case12a and case12b, or P01-1, P01-2 and P01; but not case_001 and case_002, which are numbered.
    """
    by_patient: dict[str, list[str]] = {}
    for case_id in sorted(set(case_ids)):
        by_patient.setdefault(patient_of(case_id), []).append(case_id)
    numbered, named = dict[str, list[str]](), dict[str, list[str]]()
    for name in by_patient:
        for stem, mark in () if _SCHEMES.fullmatch(name) else _split(name):
            if _has_a_number(stem, mark):
                numbered.setdefault(stem, []).append(name)
            elif len(mark) <= 3 and (mark.isdecimal() or len(mark) == 1):
                named.setdefault(stem, []).append(name)
    # Many beginnings, each of few names, are persons or places of persons; few of many names are parts of a data set.
    if len(named) >= 3 and sum(map(len, named.values())) <= 3 * len(named):
        numbered |= named
    groups = set()
    for stem, names in numbered.items():
        alike = {*names, stem} & by_patient.keys()
        if 1 < len(alike) <= FEW and not len(alike) == len(by_patient) > 3:
            groups.add(tuple(sorted(case_id for name in alike for case_id in by_patient[name])))
    return sorted(list(group) for group in groups if not any(set(group) < set(other) for other in groups))


def _names_nobody(name: str) -> bool:
    return all(word.lower() in _NOBODY for word in re.split(_GAP, name) if word)


def _split(name: str) -> Iterator[tuple[str, str]]:
    """The ways to take a name for a patient's and a mark of the scan."""
    for pattern in _MARKED:
        if (match := pattern.fullmatch(name)) and not _names_nobody(match[1]):
            yield match[1], match[2]


def _has_a_number(stem: str, mark: str) -> bool:
    """Whether a name's beginning holds a patient's number, though a mark of three digits might be the case's."""
    numbers = [number for number in re.findall(r"\d+", stem) if not _is_year(number)]
    if not numbers or not (mark.isdecimal() and len(mark) == 3):
        return bool(numbers)
    return len(numbers[-1]) >= 3 or _PERSON.fullmatch(stem) is not None


def _is_year(number: str) -> bool:
    return re.fullmatch(_YEAR, number) is not None
