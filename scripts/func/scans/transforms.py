"""Rigid and affine motions as ITK text files (``.tfm``), which ITK, ANTs, 3D Slicer and SimpleITK read.

In memory a motion is a 4 x 4 matrix in world mm, RAS+ as nibabel's affines; the files hold ITK's LPS+ frame. The format
is a few lines of text, so that it needs no ITK; the tests let SimpleITK read and write it.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from nibabel.affines import from_matvec

from func.errors import BabyAIError
from func.scans.files import atomic

_LPS = np.diag([-1.0, -1.0, 1.0, 1.0])
_WITH_MATRIX = ("AffineTransform", "MatrixOffsetTransformBase")  # the same 12 numbers: matrix by rows, translation


def save_itk_transform(path: str | Path, matrix: np.ndarray) -> None:
    """Write a motion as an ITK affine transform.

    ``antsApplyTransforms -i moving -r fixed -t FILE`` or ``sitk.Resample(moving, fixed, transform)`` then lay the
    moving image upon the fixed one.

    Args:
        path: should end in ``.tfm``.
        matrix: shape (4, 4), world mm (RAS+) of the fixed image -> world mm of the moving image.

    Raises:
        BabyAIError: the file could not be written.
    """
    in_lps = _LPS @ matrix @ _LPS
    numbers = [*in_lps[:3, :3].ravel().tolist(), *in_lps[:3, 3].tolist()]
    lines = [
        "#Insight Transform File V1.0",
        "#Transform 0",
        "Transform: AffineTransform_double_3_3",
        f"Parameters: {' '.join(map(repr, numbers))}",
        "FixedParameters: 0 0 0",
    ]
    with atomic(path) as temporary:
        temporary.write_text("\n".join(lines) + "\n", encoding="ascii")


def load_itk_transform(path: str | Path, mend: str = "make it again") -> np.ndarray:
    """Read an ITK text file that holds one affine transform, rigid or not.

    Args:
        mend: what the message on a file that cannot be used tells to do.

    Returns:
        Shape (4, 4), world mm (RAS+) of the fixed image -> world mm of the moving image.

    Raises:
        BabyAIError: the file is missing, damaged, or holds another kind of transform.
    """
    try:
        lines = Path(path).read_text(encoding="ascii").splitlines()
    except (OSError, UnicodeDecodeError):
        raise BabyAIError(f"{path} is missing or is no ITK text file; {mend}.") from None
    entries = [line.split(":", 1) for line in lines if ":" in line and not line.startswith("#")]
    kinds = [value.strip() for key, value in entries if key == "Transform"]
    if len(kinds) != 1 or kinds[0].split("_")[0] not in _WITH_MATRIX:
        found = ", ".join(kinds) or "no transform"
        raise BabyAIError(f"{path} holds {found}, not one AffineTransform; {mend}.")
    try:
        entry = {key: np.array(value.split(), dtype=float) for key, value in entries if key != "Transform"}
        numbers, center = entry["Parameters"].reshape(4, 3), entry["FixedParameters"].reshape(3)
    except (KeyError, ValueError):
        raise BabyAIError(f"{path} is a damaged ITK transform file; {mend}.") from None
    rotation, translation = numbers[:3], numbers[3]
    return _LPS @ from_matvec(rotation, translation + center - rotation @ center) @ _LPS
