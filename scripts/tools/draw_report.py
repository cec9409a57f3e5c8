"""Draw docs/report.png: what the report on one raw infant, a digital one, looks like in a browser.

    python scripts/tools/draw_report.py

Needs Chromium (Debian and Ubuntu: apt-get install chromium), which draws the page.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from func.demo import demo_scans
from func.errors import BabyAIError
from func.scans.files import atomic

# Edit these, or override them on the command line.
REPO_ROOT = Path(__file__).resolve().parents[2]
OUTPUT = REPO_ROOT / "docs" / "report.png"
WEIGHTS = "bundled"
SIZE = "1100,1240"  # pixels of the window: all of one case, in columns as on a desk


def main(argv: list[str] | None = None) -> int:
    """Scan the infant, reconstruct it as a user would, and draw the page; returns the exit code."""
    arguments = parse_arguments(argv)
    try:
        with tempfile.TemporaryDirectory() as folder:
            page = make_report(Path(folder), arguments.weights)
            with atomic(arguments.output) as path:
                draw(page, path)
    except BabyAIError as error:
        print(f"draw_report.py: {error}", file=sys.stderr)
        return 1
    print(f"Drew {arguments.output}")
    return 0


def parse_arguments(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Draw what the report on a digital infant looks like in a browser.")
    parser.add_argument("--output", type=Path, default=OUTPUT, help="the picture, .png (default: %(default)s)")
    parser.add_argument("--weights", default=WEIGHTS, help="bundled or a file (default: %(default)s)")
    return parser.parse_args(argv)


def make_report(folder: Path, weights: str) -> Path:
    """Scan and reconstruct the infant; returns the report's path."""
    scans, results = demo_scans("raw", folder), folder / "results"
    output = results / "sub-digital_desc-isotropic_T2w.nii.gz"
    files = ["--t1", str(scans.t1), "--t2", *map(str, scans.t2s), "--output", str(output)]
    # By a process of its own, whose time the report tells.
    script = REPO_ROOT / "scripts" / "inference.py"
    if subprocess.run([sys.executable, script, *files, "--weights", weights]).returncode:
        raise BabyAIError("The digital infant could not be reconstructed; see above.")
    return results / "report.html"


def draw(page: Path, picture: Path) -> None:
    """The page as Chromium shows it."""
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if not chromium:
        raise BabyAIError("Chromium is missing; install it (apt-get install chromium).")
    options = ["--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", f"--window-size={SIZE}"]
    command = [chromium, *options, f"--screenshot={picture.resolve()}", page.resolve().as_uri()]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode or not picture.exists():
        raise BabyAIError(f"Chromium drew nothing: {done.stderr.strip().splitlines()[-1:]}; try another version.")


if __name__ == "__main__":
    sys.exit(main())
