"""How results were made, in words for the methods section of a paper.

A paragraph for all results that were made alike; their number, slice thicknesses and motion are put together in it.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class _Made:
    """How one result was made, as far as results are told apart."""

    version: str
    weights: str
    libraries: str
    raw: bool
    with_t1: bool
    inferred: bool  # by a network; stacks without a T1w are only joined
    voxels: str
    motion: bool  # whether it was searched for
    agrees: bool  # with the measured slices


def methods(sidecars: Iterable[dict]) -> list[str]:
    """Paragraphs on how results were made, from their JSON sidecars; what these leave out stays open as ``[...]``."""
    alike: dict[_Made, list[dict]] = {}
    for sidecar in sidecars:
        alike.setdefault(_made(sidecar), []).append(sidecar)
    return [_paragraph(made, group) for made, group in sorted(alike.items(), key=lambda item: str(item[0]))]


def _made(sidecar: dict) -> _Made:
    versions, weights, settings = (section(sidecar, key) for key in ("Versions", "Weights", "Settings"))
    stacks, space = stacks_of(sidecar), settings.get("Space")
    sources = sidecar.get("Sources")
    with_t1 = isinstance(sources, list) and len(sources) > max(1, len(stacks))
    size = settings.get("VoxelSize")
    voxels = "1 mm voxels"
    if space == "t1":
        voxels = "the T1w's own voxels"
    elif size == "in-plane":
        voxels = "voxels as small as the slices' pixels"
    elif space and isinstance(size, int | float):
        voxels = f"{size:g} mm voxels"
    name = Path(str(weights.get("Name", "[...]"))).name
    computed = section(sidecar, "Computed")
    network, runs = computed.get("Network"), computed.get("NetworkRuns", 1)
    used = f"the {network} network of the weights {name}" if network else f"the weights {name}"
    if isinstance(runs, int) and runs > 1:
        used += f", mean of {runs} runs on mirror images"
    return _Made(
        str(versions.get("BABY-AI", "[...]")),
        "the published weights" if name == "babyai" else used,
        ", ".join(f"{library} {number}" for library, number in versions.items() if library != "BABY-AI"),
        bool(space),
        with_t1,
        with_t1 or len(stacks) <= 1,
        voxels,
        any(section(stack, "Motion").get("Searched") for stack in stacks or [sidecar]),
        weights.get("Recipe") != "babyai" and "SliceResidualAfter" in section(sidecar, "Checks"),
    )


def _paragraph(made: _Made, sidecars: list[dict]) -> str:
    shas = {str(section(sidecar, "Weights").get("SHA256", "[...]"))[:12] for sidecar in sidecars}
    weights = f"{made.weights}, SHA-256 {', '.join(sorted(shas))}; " if made.inferred else ""
    counts = [len(stacks_of(sidecar)) or 1 for sidecar in sidecars]
    sentences = [
        f"Isotropic T2w images (n = {len(sidecars)}, {made.voxels}) were reconstructed with BABY-AI {made.version} "
        f"(A. Lennartsson; {weights}{made.libraries}), each from "
        f"{_span(counts)} T2w stack{'s' if max(counts) > 1 else ''} of "
        f"{_span(_thicknesses(sidecars))} mm slices"
        f"{' and a T1w image of the same infant.' if made.with_t1 else ', without a T1w image.'}"
    ]
    if not made.inferred:
        sentences.append("The stacks were registered rigidly to the first of them; no network was used.")
    elif made.raw and made.with_t1:
        sentences.append("T2w and T1w were registered rigidly by mutual information.")
    found = 0
    if made.motion:
        stacks = [stack for sidecar in sidecars for stack in stacks_of(sidecar) or [sidecar]]
        found = sum(bool(section(stack, "Motion").get("Found")) for stack in stacks)
        sentences.append(f"Motion between slices was searched for, and undone in {found} of {len(stacks)} stacks.")
    if made.agrees:
        sentences.append(
            "The images were made to agree with the measured slices through a model of the slices' thickness, spacing, "
            f"profile{', position and motion' if found else ' and position'}."
        )
    return " ".join(sentences)


def _thicknesses(sidecars: list[dict]) -> list[float]:
    """Slice thicknesses of all stacks, mm, as far as they are stated."""
    told = []
    for sidecar in sidecars:
        told += [section(stack, "SliceGeometry") for stack in stacks_of(sidecar)] or [section(sidecar, "Quality")]
    found = [one.get("SliceThickness") for one in told]
    return [thickness for thickness in found if isinstance(thickness, int | float)]


def _span(values: list[float]) -> str:
    """``4``, ``3.3–4``, or open where there is none."""
    return "–".join(dict.fromkeys(f"{end:.3g}" for end in (min(values), max(values)))) if values else "[...]"


def stacks_of(sidecar: dict) -> list[dict]:
    """What is said of each of several stacks; empty for a single one."""
    stacks = sidecar.get("Stacks")
    return [stack for stack in stacks if isinstance(stack, dict)] if isinstance(stacks, list) else []


def section(sidecar: dict, key: str) -> dict:
    """A JSON object inside a sidecar; empty where there is none."""
    value = sidecar.get(key)
    return value if isinstance(value, dict) else {}
