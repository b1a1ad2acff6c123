"""Torch tensors in CPU memory, of every type, without NumPy between. Oracle: the bytes that Torch itself views."""

import hashlib
from typing import Any

import pytest

import pfimg

torch = pytest.importorskip("torch")
pytestmark = pytest.mark.torch

DTYPES = [torch.bfloat16, torch.float16, torch.float32, torch.float64, torch.uint8, torch.int32, torch.bool, torch.complex64]
DTYPES += [torch.float8_e4m3fn, torch.float8_e5m2, torch.uint16]


def tensor(dtype: Any, *shape: int) -> Any:
    count = torch.empty(shape, dtype=dtype).nbytes
    flat = torch.arange(count, dtype=torch.int64).to(torch.uint8)
    return (flat % 2 if dtype is torch.bool else flat).view(dtype).reshape(shape)


def content(data: Any) -> bytes:
    return bytes(data.contiguous().view(torch.uint8).flatten().tolist())


def digest(data: Any) -> str:
    return f"sha256:{hashlib.sha256(content(data)).hexdigest()}"


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_tensors_of_every_type_go_in_and_come_back(store: pfimg.PfStore, dtype: Any) -> None:
    pages = tensor(dtype, 3, 2, 4)
    assert pfimg.digest_of(pages) == digest(pages)
    want = [digest(page) for page in pages]
    assert store.put_many(pages) == store.put_many(list(pages)) == want
    whole, parts = torch.zeros_like(pages), [torch.zeros_like(page) for page in pages]
    assert store.get_many(want, out=whole) is None
    assert store.get_many(want, out=parts, errors="mask") == [True] * 3
    assert content(whole) == content(torch.stack(parts)) == content(pages)


def test_slices_are_read_from_where_they_start() -> None:
    pages = tensor(torch.bfloat16, 6, 5)
    assert pfimg.digest_of(pages[2:4]) == digest(pages[2:4])
    assert pfimg.digest_of(pages[5, 1:]) == digest(pages[5, 1:])
    assert pfimg.digest_of(torch.zeros(0)) == pfimg.digest_of(b"")
    assert pfimg.digest_of(torch.tensor(1.5)) == digest(torch.tensor([1.5]))


def test_parameters_and_what_needs_a_gradient_are_tensors() -> None:
    weights = torch.nn.Parameter(tensor(torch.float32, 4, 4))
    assert pfimg.digest_of(weights) == digest(weights.detach())


def test_tensors_in_pages(store: pfimg.PfStore) -> None:
    meta = pfimg.CacheMeta(page_size_tokens=2, n_layers=2, n_heads=2, head_dim=4, dtype="bf16")
    k = tensor(torch.bfloat16, 3, *meta.shape)
    v = -k
    pages = store.put_pages(meta, k, v, logical_seqs=[pfimg.LogicalSeq("s", [2, 0])])
    out_k, out_v = torch.zeros_like(k[:2]), torch.zeros_like(v[:2])
    assert store.get_pages(pages, sequence="s", out_k=out_k, out_v=out_v) is None
    assert torch.equal(out_k, k[[2, 0]])
    assert torch.equal(out_v, v[[2, 0]])
    new_k, _ = store.get_pages(pages)
    assert torch.equal(torch.frombuffer(new_k, dtype=torch.bfloat16).reshape(k.shape), k)


@pytest.mark.parametrize(
    ("make", "error", "match"),
    [
        (lambda: tensor(torch.uint8, 4, 6).T, BufferError, r"^data is not C-contiguous: copy it first \(tensor.contiguous\(\)\)"),
        (lambda: tensor(torch.uint8, 4, 6)[:, ::2], BufferError, r"^data is not C-contiguous"),
        (lambda: torch.zeros(4, device="meta"), TypeError, r"^data is a tensor on meta: copy it to the CPU first"),
        (lambda: torch.zeros(4, dtype=torch.complex64).conj(), BufferError, r"^data is a lazy view: make it real first"),
        (lambda: torch.zeros(1, dtype=torch.complex64).conj().imag, BufferError, r"^data is a lazy view: .*resolve_neg"),
    ],
)
def test_tensors_whose_memory_is_not_their_content_are_refused(make: Any, error: type[Exception], match: str) -> None:
    with pytest.raises(error, match=match):
        pfimg.digest_of(make())


def test_a_sparse_tensor_is_refused() -> None:
    with pytest.raises((BufferError, RuntimeError, NotImplementedError)):
        pfimg.digest_of(torch.eye(3).to_sparse())


def test_a_single_tensor_is_no_batch(store: pfimg.PfStore) -> None:
    with pytest.raises(TypeError, match=r"^buffers is a single blob: use put"):
        store.put_many(torch.zeros(4))


def test_tensors_that_share_memory_are_no_outs(store: pfimg.PfStore) -> None:
    names = store.put_many([bytes(4), bytes(range(4))])
    whole = torch.zeros(8, dtype=torch.uint8)
    with pytest.raises(ValueError, match=r"^out\[0\] and out\[1\] share memory"):
        store.get_many(names, out=[whole[:4], whole[2:6]])
