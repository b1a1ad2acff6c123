"""What every registry of several images does with their names: the same tests against each that lists, removes and compares."""

from __future__ import annotations

import json
import multiprocessing
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import pytest
from tests.registries import conftest
from tests.registries.test_contract import everything
from tests.servers.proxy import answer, proxy

import pfimg

if TYPE_CHECKING:
    from collections.abc import Callable
    from multiprocessing.synchronize import Barrier
    from pathlib import Path

    from tests.registries.conftest import Adapter
    from tests.servers import OciServer

SEVERAL = {"directory", "hf", "oci", "oci_packed", "minio", "versitygw", "azurite"}
PUSHERS = 4
# Children start afresh, as separate programs would.
PROCESSES = multiprocessing.get_context("spawn")


@pytest.fixture(params=[adapter for adapter in conftest.ADAPTERS if adapter.id in SEVERAL])
def shelf(request: pytest.FixtureRequest, _schemes: None) -> Adapter:
    adapter: Adapter = request.param(request)
    return adapter


@pytest.fixture(params=[adapter for adapter in conftest.ADAPTERS if adapter.id in SEVERAL and "oci" not in str(adapter.id)])
def exact(request: pytest.FixtureRequest) -> Adapter:
    """A place that replaces an image in one step with the look at it; registries of containers have no such step."""
    adapter: Adapter = request.param(request)
    return adapter


def named(place: Adapter, name: str) -> str:
    return f"{place.ref}:{name}" if place.ref.startswith("oci://") else f"{place.ref}#{name}"


def pulled(ref: str, root: Path) -> str:
    """The image that somebody gets who has nothing yet; it is whole."""
    store = pfimg.PfStore.open(root)
    image = pfimg.pull(ref, store).image
    assert everything(store, image)
    return image


def test_images_are_listed(shelf: Adapter, store: pfimg.PfStore, make_image: Callable[..., str]) -> None:
    assert pfimg.list_images(shelf.ref) == []
    refs = [shelf.ref, named(shelf, "one"), named(shelf, "two.2_B-")]
    for version, ref in enumerate(refs):
        assert pfimg.push(store, make_image(version), ref).ref == ref
    assert sorted(pfimg.list_images(shelf.ref)) == sorted(refs)
    assert sorted(pfimg.list_images(refs[1])) == sorted(refs)


def test_an_image_is_removed_and_the_others_stay(
    shelf: Adapter, store: pfimg.PfStore, tmp_path: Path, make_image: Callable[..., str]
) -> None:
    images = {shelf.ref: make_image(0), named(shelf, "one"): make_image(1), named(shelf, "two"): make_image(2)}
    for ref, image in images.items():
        pfimg.push(store, image, ref)
    blobs = shelf.blobs()
    for at, ref in enumerate(list(images)):
        pfimg.remove_image(ref)
        del images[ref]
        assert not pfimg.exists(ref)
        with pytest.raises((FileNotFoundError, pfimg.BackendError), match=r"no (such )?image"):
            pfimg.remove_image(ref)
        assert sorted(pfimg.list_images(shelf.ref)) == sorted(images)
        assert {ref: pulled(ref, tmp_path / f"{at}-{n}") for n, ref in enumerate(images)} == images
    assert shelf.blobs().keys() == blobs.keys()


def test_a_removed_image_is_pushed_again(shelf: Adapter, store: pfimg.PfStore, other: pfimg.PfStore, image: str) -> None:
    for ref in (shelf.ref, named(shelf, "one")):
        pfimg.push(store, image, ref)
        pfimg.remove_image(ref)
        pfimg.push(store, image, ref)
        assert pfimg.pull(ref, other).image == image


def test_what_is_expected_is_replaced_and_nothing_else(
    shelf: Adapter, store: pfimg.PfStore, tmp_path: Path, make_image: Callable[..., str]
) -> None:
    first, second, third = make_image(0), make_image(1), make_image(2)
    for at, ref in enumerate([shelf.ref, named(shelf, "one")]):
        with pytest.raises(pfimg.Conflict, match="no image is there") as caught:
            pfimg.push(store, second, ref, expect=first)
        assert (caught.value.image, caught.value.status, caught.value.code) == (None, 412, "conflict")
        assert not pfimg.exists(ref)
        pfimg.push(store, first, ref, expect="none")
        before = shelf.blobs()
        for expected in ("none", third):
            with pytest.raises(pfimg.Conflict, match=f"{first} is there") as caught:
                pfimg.push(store, second, ref, expect=expected)
            assert caught.value.image == first
        assert shelf.blobs().keys() == before.keys()
        assert pulled(ref, tmp_path / f"{at}-before") == first
        pfimg.push(store, second, ref, expect=first)
        assert pulled(ref, tmp_path / f"{at}-after") == second
        pfimg.remove_image(ref)
        pfimg.push(store, first, ref, expect="none")


def test_an_image_that_appears_while_blobs_are_sent_is_not_replaced(
    shelf: Adapter, store: pfimg.PfStore, tmp_path: Path, make_image: Callable[..., str]
) -> None:
    ours, theirs = make_image(0), make_image(1)
    for at, ref in enumerate([shelf.ref, named(shelf, "one")]):
        come: list[pfimg.PushReport] = []

        def forestall(event: pfimg.Progress, ref: str = ref, come: list[pfimg.PushReport] = come) -> None:
            if event.phase == "send" and not come:
                come.append(pfimg.push(store, theirs, ref))

        with pytest.raises(pfimg.Conflict) as caught:
            pfimg.push(store, ours, ref, expect="none", progress=forestall)
        assert caught.value.image == theirs
        assert pulled(ref, tmp_path / f"pulled-{at}") == theirs
        store.remove_image(ours)
        ours = make_image(10 + at)


def test_of_many_pushes_that_expect_the_same_one_wins(
    exact: Adapter, store: pfimg.PfStore, tmp_path: Path, make_image: Callable[..., str]
) -> None:
    images = [make_image(version) for version in range(PUSHERS)]
    for at, ref in enumerate([exact.ref, named(exact, "one")]):
        start = threading.Barrier(PUSHERS)

        def race(image: str, ref: str = ref, start: threading.Barrier = start) -> str | None:
            start.wait()
            try:
                pfimg.push(store, image, ref, expect="none")
            except pfimg.Conflict as conflict:
                return conflict.image
            return image

        with ThreadPoolExecutor(PUSHERS) as pool:
            found = list(pool.map(race, images))
        won = [image for image, seen in zip(images, found, strict=True) if image == seen]
        assert len(won) == 1
        assert set(found) == set(won)  # who lost was told who won
        assert pulled(ref, tmp_path / f"pulled-{at}") == won[0]


def count_up(root: str, ref: str, start: Barrier, rounds: int) -> None:
    """Adds so many numbers to the ones in an image, each time to those that are there."""
    store = pfimg.PfStore.open(root, durability="none")
    start.wait()
    for _ in range(rounds):
        while True:
            current = pfimg.pull(ref, store).image
            count = int(store.get_manifest(current).agent.version)
            image = pfimg.snapshot(store, agent=pfimg.AgentInfo("counter", str(count + 1)), parents=[current])
            try:
                pfimg.push(store, image, ref, expect=current)
            except pfimg.Conflict:
                continue
            break


@pytest.mark.parametrize("where", [adapter for adapter in conftest.ADAPTERS if adapter.id in ("directory", "minio")])
def test_no_update_of_several_processes_is_lost(
    request: pytest.FixtureRequest, where: Callable[[pytest.FixtureRequest], Adapter], tmp_path: Path
) -> None:
    place = where(request)
    rounds, processes = 5, 3
    store = pfimg.PfStore.open(tmp_path / "store")
    for ref in (place.ref, named(place, "counter")):
        pfimg.push(store, pfimg.snapshot(store, agent=pfimg.AgentInfo("counter", "0")), ref)
        start = PROCESSES.Barrier(processes)
        stores = [str(tmp_path / f"{ref[-7:]}-{n}".replace("/", "")) for n in range(processes)]
        children = [PROCESSES.Process(target=count_up, args=(root, ref, start, rounds)) for root in stores]
        for child in children:
            child.start()
        for child in children:
            child.join()
        assert [child.exitcode for child in children] == [0] * processes
        last = pfimg.pull(ref, store).image
        assert store.get_manifest(last).agent.version == str(rounds * processes)


def test_an_expectation_that_is_no_id_is_refused(store: pfimg.PfStore, tmp_path: Path, image: str) -> None:
    with pytest.raises(pfimg.FormatError, match="or none"):
        pfimg.push(store, image, f"file://{tmp_path}/registry", expect="yesterday's")
    assert not (tmp_path / "registry").exists()


def test_places_of_one_image_or_none_say_so(store: pfimg.PfStore, image: str) -> None:
    for ref in ("ipfs://", "http://127.0.0.1:1/registry"):
        for ask in (
            lambda ref: pfimg.push(store, image, ref, expect="none"),
            pfimg.remove_image,
            pfimg.list_images,
        ):
            with pytest.raises(pfimg.RegistryError) as caught:
                ask(ref)
            assert caught.value.code == "not_offered", (ref, caught.value)


@pytest.mark.parametrize("status", [400, 405])
def test_a_registry_that_removes_no_tags_says_so(distribution: OciServer, store: pfimg.PfStore, image: str, status: int) -> None:
    with proxy(distribution.base_url) as between:
        ref = f"oci://{between.registry}/{distribution.repository()}:v1"
        pfimg.push(store, image, ref)
        refusal = json.dumps({"errors": [{"code": "UNSUPPORTED", "message": "The operation is unsupported."}]})
        between.always("DELETE", "/manifests/v1", answer(status, body=refusal.encode()))
        with pytest.raises(pfimg.BackendError, match=r"removes no tags.*is unsupported") as caught:
            pfimg.remove_image(ref)
        assert (caught.value.code, caught.value.status) == ("not_offered", status)
        assert pfimg.list_images(ref) == [ref]


def test_a_tag_is_removed_by_somebody_with_a_token(
    distribution_token: OciServer, store: pfimg.PfStore, image: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OCI_USERNAME", distribution_token.user)
    monkeypatch.setenv("OCI_PASSWORD", distribution_token.password)
    ref = f"oci://{distribution_token.registry}/{distribution_token.repository()}:v1"
    pfimg.push(store, image, ref)
    pfimg.remove_image(ref)
    assert not pfimg.exists(ref)


@pytest.mark.parametrize("ref", ["oci://127.0.0.1:1/a@sha256:" + "0" * 64, "hf://me/it@main"])
def test_what_is_no_name_is_not_removed(ref: str) -> None:
    with pytest.raises(pfimg.RegistryError, match=r"leave the digest out|for reading"):
        pfimg.remove_image(ref)
