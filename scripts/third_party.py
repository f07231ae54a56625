"""Writes the lists of Python packages in docs/third-party.md, from the installed packages.

A package's licence is what its own metadata states. A package that the installed torch does not
need, such as CUDA's libraries beside a CPU build, is not in the lists.
"""

import textwrap
from collections import defaultdict
from importlib.metadata import distribution, metadata
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

DOC = Path(__file__).parents[1] / "docs" / "third-party.md"
#: What each image installs: Dockerfile.broker and Dockerfile.gpu.
IMAGES = {
    "broker": ["reelbroker[broker,postgres,modal]"],
    "worker": ["reelbroker[worker]", "realesrgan", "basicsr"],
}
#: Installed without what they depend on.
ALONE = {"realesrgan", "basicsr"}


def packages(roots: list[str]) -> set[str]:
    """Returns the names of all packages that requirements lead to, ours left out."""
    found: dict[str, set[str]] = {}
    waiting = [Requirement(root) for root in roots]
    while waiting:
        wanted = waiting.pop()
        name = canonicalize_name(wanted.name)
        if name in found and wanted.extras <= found[name]:
            continue
        extras = found.setdefault(name, set())
        extras |= wanted.extras
        if name in ALONE:
            continue
        for line in distribution(name).requires or []:
            needed = Requirement(line)
            marker = needed.marker
            if marker is None or any(marker.evaluate({"extra": one}) for one in ("", *extras)):
                waiting.append(needed)
    return set(found) - {"reelbroker"}


def licence(name: str) -> str:
    """Returns what a package's metadata states, in the most exact field that it has."""
    stated = metadata(name)
    if "License-Expression" in stated:
        return stated["License-Expression"]
    classes = [one.split(" :: ") for one in stated.get_all("Classifier") or []]
    named = sorted({one[-1] for one in classes if one[0] == "License" and len(one) > 2})
    [text] = stated.get_all("License") or ["not stated"]
    return ", ".join(named) or text.splitlines()[0]


def listed(roots: list[str]) -> str:
    """Returns a list with one entry a licence, its packages behind it."""
    by_licence = defaultdict(list)
    for name in sorted(packages(roots)):
        by_licence[licence(name)].append(name)
    entries = sorted(by_licence.items(), key=lambda entry: entry[0].lower())
    lines = (f"- {stated}: {', '.join(names)}." for stated, names in entries)
    fill = textwrap.TextWrapper(100, subsequent_indent="  ", break_on_hyphens=False).fill
    return "\n".join(map(fill, lines))


def main() -> None:
    """Replaces what is between each pair of marks."""
    text = DOC.read_text()
    for image, roots in IMAGES.items():
        begin, end = f"<!-- {image} -->\n", f"\n<!-- end of {image} -->"
        before, _, rest = text.partition(begin)
        _, _, after = rest.partition(end)
        text = f"{before}{begin}\n{listed(roots)}\n{end}{after}"
    DOC.write_text(text)


if __name__ == "__main__":
    main()
