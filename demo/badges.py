"""The README's badges, what `pyproject.toml` claims, and the site's icon: small SVG files that no other host serves.

`python -m demo.pictures badges` writes them; a test compares them with what it would write.
"""

from __future__ import annotations

import re

COMMAND = "python -m demo.pictures badges"
_LETTER, _PAD, _HEIGHT = 6.6, 8, 20

_SVG = """<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" role="img">
<title>{name}: {value}</title>
<metadata>{command}</metadata>
<rect width="{width}" height="{height}" rx="3" fill="#2f5d8a"/>
<path d="M0 3a3 3 0 0 1 3-3h{inner}v{height}H3a3 3 0 0 1-3-3z" fill="#444"/>
<g fill="#fff" font-family="Verdana,DejaVu Sans,sans-serif" font-size="11" text-anchor="middle">
<text x="{left}" y="14">{name}</text><text x="{right}" y="14">{value}</text>
</g>
</svg>
"""

# An image as a stack of codes, coarse to fine.
_ICON = """<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 32 32">
<metadata>{command}</metadata>
<rect x="2" y="2" width="18" height="18" rx="2" fill="#9db8d9"/>
<rect x="7" y="7" width="18" height="18" rx="2" fill="#5b86b5"/>
<rect x="12" y="12" width="18" height="18" rx="2" fill="#2f5d8a"/>
</svg>
"""


def badges(project: str) -> dict[str, str]:
    """File name -> SVG, from the text of `pyproject.toml`."""
    pythons = re.findall(r'"Programming Language :: Python :: (3\.\d+)"', project)
    (torch,) = re.findall(r'^    "torch>=([\d.]+)"', project, re.MULTILINE)
    (licence,) = re.findall(r'^license = "(.+)"$', project, re.MULTILINE)
    shown = {"python": f"{pythons[0]} - {pythons[-1]}", "torch": f">= {torch}", "licence": licence}
    made = {f"badge_{name}.svg": _badge(name, value.replace(">", "&gt;")) for name, value in shown.items()}
    return made | {"icon.svg": _ICON.format(command=COMMAND)}


def _badge(name: str, value: str) -> str:
    left, right = (round(len(text.replace("&gt;", ">")) * _LETTER + 2 * _PAD) for text in (name, value))
    return _SVG.format(
        name=name,
        value=value,
        command=COMMAND,
        width=left + right,
        height=_HEIGHT,
        inner=left - 3,
        left=left / 2,
        right=left + right / 2,
    )
