import re
from pathlib import Path

import pytest

from pfimg.cli.npy import PagesFile

np = pytest.importorskip("numpy")


@pytest.mark.parametrize(("dtype", "name"), [("<u2", "bf16"), ("<f2", "f16"), ("<f4", "f32"), ("u1", "fp8e4m3")])
@pytest.mark.parametrize("version", [(1, 0), (2, 0), (3, 0)])
def test_what_numpy_wrote_is_read(tmp_path: Path, dtype: str, name: str, version: tuple[int, int]) -> None:
    array = np.random.default_rng(1).integers(0, 200, (3, 2, 4, 2, 8)).astype(dtype)
    with (tmp_path / "pages.npy").open("wb") as file:
        np.lib.format.write_array(file, array, version=version)
    found = PagesFile.open(tmp_path / "pages.npy")
    assert found.rows.shape == (3, found.meta.page_bytes)
    assert found.rows.tobytes() == array.tobytes()
    assert (found.meta.dtype, found.meta.shape) == (name, (2, 4, 2, 8))


def refused(path: Path) -> str:
    with pytest.raises(ValueError, match=re.escape(str(path))) as caught:
        PagesFile.open(path)
    return str(caught.value)


def test_what_is_no_array_of_pages_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "pages.npy"
    for array in (np.zeros((2, 3)), np.zeros((2, 2, 2, 2)), np.zeros((2, 2, 2, 2, 2), ">u2"), np.zeros((1, 1, 1, 1, 1), complex)):
        np.save(path, array)
        refused(path)
    np.save(path, np.asfortranarray(np.zeros((2, 2, 2, 2, 2), "<u2")))
    assert "Fortran" in refused(path)
    np.save(path, np.zeros((2, 2, 2, 2, 2), "<u2"))
    whole = path.read_bytes()
    path.write_bytes(whole[:-1])
    assert "63" in refused(path)
    for damaged in (b"", b"\x93NUMPY", whole[:40], whole[:10] + b"(" * 118 + whole[128:], whole.replace(b"'shape'", b"'shapo'")):
        path.write_bytes(damaged)
        refused(path)
