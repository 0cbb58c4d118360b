"""What emoji are called and what they are made of, from their code points.

Names are CLDR's, as the package `emoji` has them; groups are those of Unicode's emoji-test.txt. A drawing of one person
is a combination of role, gender and skin tone, which is what the compositional split of `data.captions.openmoji` holds
out.
"""

from __future__ import annotations

import bisect
import re
from typing import NamedTuple

GROUPS = (
    "smileys & emotion", "people & body", "component", "animals & nature", "food & drink", "travel & places",
    "activities", "objects", "symbols", "flags",
)  # fmt: skip
GENDERS = ("person", "man", "woman")
TONES = ("", "light", "medium-light", "medium", "medium-dark", "dark")
_JOINER, _EMOJI_STYLE = 0x200D, 0xFE0F
_FIRST_TONE = 0x1F3FB
_PEOPLE = {0x1F9D1: "person", 0x1F468: "man", 0x1F469: "woman"}
_SIGNS = {0x2642: "man", 0x2640: "woman"}
_FLAG_LETTERS = range(0x1F1E6, 0x1F200)
_TONE_WORDS = re.compile(r"((?:medium-light|medium-dark|light|medium|dark) skin tone)")
# Where in the order of first code points another group begins: s p c a f t v o y l, in the order of GROUPS. After
# emoji-test.txt 15.0 and the additions up to 17.0; what lies between two emoji counts with the first.
_LETTERS = "spcaftvoyl"
_STARTS = (
    "23y 231At 2328o 23CFy 23F0t 23F8y 2600t 260Eo 2611y 2614t 2615f 2618a 261Dp 2620s 2622y 2639s 2640y 265Fv "
    "2668t 267By 2692o 2693t 2694o 2695y 2696o 269By 26A1t 26A7y 26B0o 26BDv 26C4t 26CEy 26CFo 26D4y 26E9t 26F3v "
    "26F4t 26F7p 26F8v 26F9p 26FAt 2702o 2705y 2708t 2709o 270Ap 270Fo 2714y 2728v 2733y 2744t 2747y 2763s 2795y "
    "2B50t 2B55y 1F004v 1F170y 1F1E6l 1F201y 1F300t 1F32Df 1F331a 1F336f 1F337a 1F33Df 1F33Ea 1F345f 1F380v 1F382f "
    "1F383v 1F385p 1F386v 1F38Cl 1F38Dv 1F392o 1F396v 1F399o 1F39Fv 1F3A0t 1F3A3v 1F3A4o 1F3A6y 1F3A7o 1F3A8v "
    "1F3A9o 1F3AAt 1F3ABv 1F3ACo 1F3ADv 1F3B5o 1F3BDv 1F3C1l 1F3C2p 1F3C5v 1F3C7p 1F3C8v 1F3CAp 1F3CDt 1F3CFv "
    "1F3D4t 1F3E7y 1F3E8t 1F3EEo 1F3EFt 1F3F3l 1F3F5a 1F3F7o 1F3F8v 1F3F9o 1F3FAf 1F3FBc 1F400a 1F440p 1F451o "
    "1F463p 1F479s 1F47Cp 1F47Ds 1F481p 1F484o 1F485p 1F488t 1F489o 1F48Bs 1F48Do 1F48Fp 1F490a 1F491p 1F492t "
    "1F493s 1F4A0y 1F4A1o 1F4A2s 1F4A3o 1F4A4s 1F4A7t 1F4A8s 1F4AAp 1F4ABs 1F4AEa 1F4AFs 1F4B0o 1F4B1y 1F4B3o "
    "1F4BAt 1F4BBo 1F4DBy 1F4DCo 1F4F3y 1F4F7o 1F500y 1F507o 1F518y 1F525t 1F526o 1F52Af 1F52Bv 1F52Co 1F52Ev "
    "1F52Fy 1F54Aa 1F54Bt 1F54Ey 1F550t 1F56Fo 1F570t 1F573s 1F574p 1F576o 1F577a 1F579v 1F57Ap 1F587o 1F590p "
    "1F5A4s 1F5A5o 1F5BCv 1F5C2o 1F5E3p 1F5E8s 1F5F3o 1F5FAt 1F5FFo 1F600s 1F645p 1F648s 1F64Bp 1F680t 1F6A3p "
    "1F6A4t 1F6A9l 1F6AAo 1F6ABy 1F6ACo 1F6ADy 1F6B2t 1F6B3y 1F6B4p 1F6B7y 1F6BDo 1F6BEy 1F6BFo 1F6C0p 1F6C1o "
    "1F6C2y 1F6CBo 1F6CCp 1F6CDo 1F6CEt 1F6CFo 1F6D0y 1F6D1t 1F6D2o 1F6D5t 1F6D7o 1F6D8t 1F6DCy 1F6DDt 1F6E0o "
    "1F6E2t 1F6F7v 1F6F8t 1F7E0y 1F90Cp 1F90Ds 1F90Fp 1F910s 1F918p 1F920s 1F926p 1F927s 1F930p 1F93Fv 1F940a "
    "1F941o 1F942f 1F945v 1F950f 1F970s 1F977p 1F978s 1F97Bo 1F980f 1F981a 1F990f 1F992a 1F99Ef 1F99Fa 1F9AAf "
    "1F9ABa 1F9AFo 1F9B0c 1F9B4p 1F9BAo 1F9BBp 1F9BCt 1F9BEp 1F9C0f 1F9CCp 1F9D0s 1F9D1p 1F9E1s 1F9E2o 1F9E7v "
    "1F9EAo 1F9EDt 1F9EEo 1F9F1t 1F9F2o 1F9F3t 1F9F4o 1F9F5v 1F9F7o 1F9F8v 1F9F9o 1FA75s 1FA78o 1FA80v 1FA82t "
    "1FA83o 1FA84v 1FA87o 1FA90t 1FA91o 1FAA1v 1FAA3o 1FAA8t 1FAA9v 1FAAAo 1FAAFy 1FAB0a 1FAB5t 1FAB6a 1FAC0p "
    "1FAC8s 1FACDa 1FAD0f 1FADFy 1FAE0s 1FAE6p 1FAE7o 1FAE8s 1FAF0p "
)
_RUNS = [(int(word[:-1], 16), _LETTERS.index(word[-1])) for word in "".join(_STARTS).split()]
_RUN_STARTS = [start for start, _ in _RUNS]


class Combination(NamedTuple):
    """One person in a role: what is done or carried (code points, in hexadecimal), gender and skin tone."""

    role: str
    gender: str
    tone: str


def code_points(name: str) -> tuple[int, ...]:
    """Those of a file name such as 1F469-1F3FE-200D-1F692."""
    return tuple(int(part, 16) for part in name.split("-"))


def group_of(name: str) -> int:
    """The place in `GROUPS` of an emoji, by its first code point."""
    first = code_points(name)[0]
    return _RUNS[max(0, bisect.bisect_right(_RUN_STARTS, first) - 1)][1]


def caption_of(name: str, short_name: str) -> str:
    """`woman firefighter: medium-dark skin tone`, from the package's `:woman_firefighter_medium-dark_skin_tone:`."""
    words = short_name.strip(":").replace("_", " ")
    if code_points(name)[0] in _FLAG_LETTERS:
        return f"flag: {words}"
    head, *rest = (part.strip() for part in _TONE_WORDS.split(words))
    details = ", ".join(part for part in rest if part)
    return f"{head}: {details}" if head and details else words


def combination_of(name: str) -> Combination | None:
    """Role, gender and skin tone of a drawing of one person; None for anything else."""
    points = [point for point in code_points(name) if point != _EMOJI_STYLE]
    tones = [point for point in points if 0 <= point - _FIRST_TONE < 5]
    if len(tones) > 1 or (tones and points.index(tones[0]) != 1):
        return None
    tone = TONES[1 + tones[0] - _FIRST_TONE] if tones else ""
    first, *rest = [point for point in points if point not in tones]
    if first in _PEOPLE:
        gender, role = _PEOPLE[first], rest
    else:
        signs = [point for point in rest if point in _SIGNS]
        if len(signs) > 1:
            return None
        gender = _SIGNS[signs[0]] if signs else "person"
        role = [first, *(point for point in rest if point not in signs)]
    if any(point in _PEOPLE for point in role):
        return None  # several people
    # a sign or an object is joined on; without it the joiner means nothing
    words = [f"{point:X}" for point in role if point != _JOINER]
    return Combination("-".join(words), gender, tone)
