"""The way to a bucket: endpoints, credentials, certificates, and what is said when one of them is wrong."""

from __future__ import annotations

import json
import re
import socket
import ssl
import subprocess
import sys
import traceback
from typing import TYPE_CHECKING, Any

import pytest
from tests.registries.s3_places import BucketPlace, point_to
from tests.servers import certificates
from tests.servers.faulty import faulty, refused
from tests.servers.scripted import Answer, scripted

import pfimg
from pfimg.registries import S3Registry, S3Transport
from pfimg.registries.s3.access import Access

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from tests.servers import S3Server

SECRET = "very-secret-value-0123456789"


@pytest.fixture(autouse=True)
def _nothing_of_the_machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, minio: S3Server) -> None:
    point_to(minio, monkeypatch)
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "credentials"))
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))


@pytest.fixture
def place(minio: S3Server) -> BucketPlace:
    return BucketPlace(minio, minio.make_bucket())


def acts(store: pfimg.PfStore, image: str, ref: str) -> list[Callable[[], object]]:
    return [
        lambda: pfimg.exists(ref),
        lambda: pfimg.pull(ref, store),
        lambda: pfimg.push(store, image, ref),
        lambda: pfimg.push(store, image, f"{ref}#name", layout="packed"),
    ]


def failures(store: pfimg.PfStore, image: str, ref: str) -> Iterator[pfimg.BackendError]:
    """The errors of all calls: each is one line, names the bucket, and holds no secret, nor does its trace."""
    for act in acts(store, image, ref):
        with pytest.raises(pfimg.BackendError) as caught:
            act()
        text = str(caught.value)
        assert text.startswith(ref.partition("#")[0])
        assert "\n" not in text
        assert SECRET not in "".join(traceback.format_exception(caught.value))
        yield caught.value


def expect(errors: Iterator[pfimg.BackendError], code: str, status: int | None, match: str) -> None:
    for error in errors:
        assert (error.code, error.status) == (code, status), error
        assert re.search(match, str(error)), error
        assert not isinstance(error, FileNotFoundError)


def test_a_bucket_that_is_not_there(store: pfimg.PfStore, image: str) -> None:
    expect(failures(store, image, "s3://no-such-bucket/p"), "no_bucket", 404, "does not exist: create it, or")


def test_a_wrong_secret(place: BucketPlace, store: pfimg.PfStore, image: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    expect(failures(store, image, place.ref), "credentials", 403, "credentials are wrong: check AWS_ACCESS_KEY_ID")


def test_an_unknown_key(
    place: BucketPlace, versitygw: S3Server, store: pfimg.PfStore, image: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "nobody")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    expect(failures(store, image, place.ref), "credentials", 403, "credentials are wrong")
    # This one answers 404, which must not be taken for absence.
    monkeypatch.setenv("AWS_ENDPOINT_URL", versitygw.endpoint)
    expect(failures(store, image, f"s3://{versitygw.make_bucket()}"), "credentials", 404, "credentials are wrong")


def test_who_may_not_look_is_told_so(
    place: BucketPlace, store: pfimg.PfStore, image: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_SKIP_SIGNATURE", "true")
    expect(failures(store, image, place.ref), "forbidden", 403, "access is denied: these credentials may not do this")


def test_another_region(versitygw: S3Server, store: pfimg.PfStore, image: str, monkeypatch: pytest.MonkeyPatch) -> None:
    point_to(versitygw, monkeypatch)
    monkeypatch.setenv("AWS_REGION", "eu-west-1")
    ref = f"s3://{versitygw.make_bucket()}/p"
    expect(failures(store, image, ref), "wrong_region", 400, "another region, us-east-1: set AWS_REGION")


def document(code: str, message: str = "m") -> bytes:
    token = f"<Token-0>{SECRET}</Token-0><CanonicalRequest>x-amz-security-token:{SECRET}</CanonicalRequest>"
    return f"<?xml version='1.0'?><Error><Code>{code}</Code><Message>{message}</Message>{token}</Error>".encode()


@pytest.mark.parametrize(
    ("status", "body", "code", "match"),
    [
        (400, document("ExpiredToken"), "expired", "credentials have expired: get new ones"),
        (403, document("InvalidTokenId"), "credentials", "session token is not valid"),
        (403, document("RequestTimeTooSkewed"), "clock", "the clock of this machine is wrong"),
        (403, document("AccessDenied"), "forbidden", "access is denied"),
        (403, b"", "forbidden", "access is denied"),
        (401, b"who are you?", "credentials", "credentials are wrong"),
        (301, document("PermanentRedirect", "use the endpoint"), "wrong_region", "another region: set AWS_REGION"),
        (400, document("Surprise", "something &quot;odd&quot; happened"), "backend", '400 Surprise: something "odd" happened$'),
        (404, b"<html><title>nothing here</title>", "backend", r"answered 404$"),
        (404, document("NoSuchService"), "backend", r"answered 404 NoSuchService"),
    ],
)
def test_what_services_refuse_with(
    store: pfimg.PfStore, image: str, monkeypatch: pytest.MonkeyPatch, status: int, body: bytes, code: str, match: str
) -> None:
    with scripted() as server:
        server.otherwise = Answer(status, body)
        monkeypatch.setenv("AWS_ENDPOINT_URL", server.url)
        expect(failures(store, image, "s3://bucket/p"), code, status, match)
        assert len(server.asked) == 4  # nothing is asked again, and none goes on


def test_nobody_there(store: pfimg.PfStore, image: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        endpoint = f"http://127.0.0.1:{listener.getsockname()[1]}"
    monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
    expect(failures(store, image, "s3://bucket/p"), "unreachable", None, f"refused at {endpoint}: check the endpoint")


def test_a_host_that_is_not_known() -> None:
    registry = S3Registry(endpoint="https://no-such-host.invalid")
    with pytest.raises(pfimg.BackendError, match=r"the name of the host is not known at https://no-such-host\.invalid") as caught:
        registry.exists("s3://bucket/p")
    assert caught.value.code == "unreachable"


def test_a_certificate_that_is_not_trusted_and_one_that_is(
    place: BucketPlace, minio: S3Server, store: pfimg.PfStore, image: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = certificates.make(tmp_path)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(files.certificate, files.key)
    with faulty(minio.endpoint, context) as front:
        monkeypatch.setenv("AWS_ENDPOINT_URL", front.endpoint)
        expect(failures(store, image, place.ref), "certificate", None, r"is not trusted \(UnknownIssuer\): name its")
        assert front.asked == []
        assert not pfimg.registries.open(place.ref, ca=files.ca).exists(place.ref)
        monkeypatch.setenv("AWS_CA_BUNDLE", str(files.ca))
        pfimg.push(store, image, place.ref)
        assert pfimg.exists(place.ref)
        monkeypatch.setenv("AWS_CA_BUNDLE", str(tmp_path / "absent.pem"))
        with pytest.raises(FileNotFoundError):
            pfimg.exists(place.ref)
        with pytest.raises(pfimg.RegistryError, match="cannot be opened"):
            pfimg.registries.open(place.ref, ca=files.key).exists(place.ref)


def test_a_public_bucket_is_read_without_credentials(
    place: BucketPlace, minio: S3Server, store: pfimg.PfStore, other: pfimg.PfStore, image: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    pfimg.push(store, image, place.ref)
    everybody = {"Effect": "Allow", "Principal": {"AWS": ["*"]}}
    actions = [("s3:GetObject", f"arn:aws:s3:::{place.bucket}/*"), ("s3:ListBucket", f"arn:aws:s3:::{place.bucket}")]
    statements = [{**everybody, "Action": [action], "Resource": [resource]} for action, resource in actions]
    policy = json.dumps({"Version": "2012-10-17", "Statement": statements}).encode()
    assert minio.request("PUT", f"/{place.bucket}", policy, query={"policy": ""}).status == 204
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    registry = pfimg.registries.open(place.ref, skip_signature=True)
    assert registry.exists(place.ref)
    assert not registry.exists(f"{place.ref}#name")
    assert registry.pull(place.ref, other).image == image
    with pytest.raises(pfimg.BackendError, match="access is denied") as caught:
        registry.push(f"{place.ref}#name", store.get_manifest(image), store)
    assert caught.value.status == 403


# Endpoints.


def reach(endpoint: str | None = None, **options: Any) -> Access:
    return Access.of(pfimg.S3Ref("bucket", scheme=options.pop("scheme", "s3")), endpoint=endpoint, **options)


def test_plain_http_is_for_this_machine_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    for local in ("http://127.0.0.1:9000", "http://localhost", "http://[::1]:9000", "http://127.8.9.10"):
        assert reach(local).place.endpoint == local
    remote = "http://192.0.2.1:9000"
    with pytest.raises(pfimg.BadRef, match=rf"endpoint {remote}: over plain http, .*: use https, or allow_http=True"):
        reach(remote)
    reach(remote, allow_http=True)
    reach(remote, skip_signature=True)
    with pytest.raises(pfimg.BadRef, match="plain http"):
        reach(remote, skip_signature=False)
    monkeypatch.setenv("AWS_ENDPOINT_URL", remote)
    with pytest.raises(pfimg.BadRef, match="plain http"):
        pfimg.exists("s3://bucket")
    monkeypatch.setenv("AWS_ALLOW_HTTP", "true")
    reach()
    with pytest.raises(pfimg.BadRef, match="plain http"):
        reach(allow_http=False)


@pytest.mark.parametrize("endpoint", ["nonsense", "ftp://host", "http://", "https://host:port", "//host", "http://[::1"])
def test_an_endpoint_that_is_none(endpoint: str) -> None:
    with pytest.raises(pfimg.BadRef, match="is no address"):
        reach(endpoint)


@pytest.mark.parametrize("endpoint", [f"https://me:{SECRET}@host", f"https://host/?token={SECRET}", f"https://{SECRET}@host"])
def test_an_endpoint_holds_no_credentials(endpoint: str) -> None:
    with pytest.raises(pfimg.BadRef, match="holds no credentials") as caught:
        reach(endpoint)
    assert SECRET not in str(caught.value)


def test_the_more_special_variable_counts(monkeypatch: pytest.MonkeyPatch, place: BucketPlace) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", "https://special.invalid")
    assert reach().place.endpoint == "https://special.invalid"
    assert not pfimg.registries.open(place.ref, endpoint=place.server.endpoint).exists(place.ref)
    monkeypatch.setenv("AWS_ENDPOINT_URL", "https://general.invalid")
    monkeypatch.delenv("AWS_ENDPOINT_URL_S3")
    assert reach().place.endpoint == "https://general.invalid"
    monkeypatch.delenv("AWS_ENDPOINT_URL")
    assert reach().place.endpoint == "Amazon S3"
    assert reach(scheme="gs").place.endpoint == "Google Cloud Storage"


# Options.


def test_an_unknown_option_is_named() -> None:
    with pytest.raises(pfimg.RegistryError, match="'colour' is not valid") as caught:
        S3Transport(pfimg.S3Ref("bucket"), colour="red")
    assert caught.value.code == "option"
    with pytest.raises(pfimg.RegistryError, match='failed to parse "perhaps"'):
        S3Transport(pfimg.S3Ref("bucket"), request_payer="perhaps")


# Credentials.


def write_profile(tmp_path: Path, server: S3Server) -> None:
    keys = f"aws_access_key_id = {server.access_key}\naws_secret_access_key = {server.secret_key}\n"
    (tmp_path / "credentials").write_text(f"[work]\n{keys}")
    (tmp_path / "config").write_text("[profile empty]\nregion = us-east-1\n")


def test_a_profile(
    place: BucketPlace, minio: S3Server, store: pfimg.PfStore, image: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_profile(tmp_path, minio)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "wrong")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    registry = pfimg.registries.open(place.ref, profile="work")
    registry.push(place.ref, store.get_manifest(image), store)
    with pytest.raises(pfimg.BackendError, match="credentials are wrong"):
        pfimg.exists(place.ref)
    monkeypatch.setenv("AWS_PROFILE", "work")
    with pytest.raises(pfimg.BackendError, match="credentials are wrong"):
        pfimg.exists(place.ref)  # keys in the environment count more, as with the tools of AWS
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    assert pfimg.exists(place.ref)
    with pytest.raises(pfimg.RegistryError, match=r"no credentials: .*nowhere.* could not be found"):
        pfimg.registries.open(place.ref, profile="nowhere").exists(place.ref)
    with pytest.raises(pfimg.RegistryError, match="profile 'empty' has no credentials: log in"):
        pfimg.registries.open(place.ref, profile="empty").exists(place.ref)


def test_a_profile_takes_boto3(place: BucketPlace, minio: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_profile(tmp_path, minio)
    monkeypatch.setitem(sys.modules, "boto3", None)
    with pytest.raises(pfimg.RegistryError, match="profile 'work' takes boto3: pip install boto3") as caught:
        pfimg.registries.open(place.ref, profile="work").exists(place.ref)
    assert caught.value.code == "not_installed"
    assert not pfimg.exists(place.ref)  # what needs no profile does not need it


def test_no_credentials_at_all(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    with scripted() as nobody:  # where a machine of the cloud would ask
        nobody.otherwise = Answer(404)
        monkeypatch.setenv("AWS_METADATA_ENDPOINT", nobody.url)
        registry = pfimg.registries.open("s3://bucket/p", metadata_endpoint=nobody.url)
        with pytest.raises(pfimg.BackendError, match=r"s3://bucket/p/manifest\.json") as caught:
            registry.exists("s3://bucket/p")
    assert not caught.value.retryable


def test_a_service_that_expires_in_the_middle(
    place: BucketPlace, minio: S3Server, store: pfimg.PfStore, make_image: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    image = make_image(pages=60)
    puts = iter(range(50))
    with faulty(minio.endpoint) as front:
        front.faults.append(
            lambda asked: refused(400, document("ExpiredToken")) if asked.method == "PUT" and next(puts, None) is None else None
        )
        monkeypatch.setenv("AWS_ENDPOINT_URL", front.endpoint)
        with pytest.raises(pfimg.BackendError, match="credentials have expired") as caught:
            pfimg.push(store, image, place.ref)
    assert caught.value.code == "expired"
    assert not any(name.startswith("manifest") for name in place.names())


# Without obstore.


FORK = """
import os, sys, pfimg
ref = sys.argv[1]
assert not pfimg.exists(ref)
child = os.fork()
if child == 0:
    try:
        pfimg.exists(ref)
    except pfimg.RegistryError as error:
        print(error.code, error, flush=True)
    os._exit(0)
os.waitpid(child, 0)
"""


@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")
def test_a_forked_process_is_told_that_it_cannot(place: BucketPlace) -> None:
    done = subprocess.run([sys.executable, "-c", FORK, place.ref], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.startswith(f"forked {place.ref}")
    assert "spawn" in done.stdout


def test_importing_the_package_does_not_import_obstore() -> None:
    script = "import sys, pfimg; print('obstore' in sys.modules, 'az' in pfimg.registries.base.schemes())"
    assert subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout == "False True\n"


def test_without_obstore_the_extra_is_named() -> None:
    script = (
        "import sys; sys.modules['obstore'] = None\n"
        "import pfimg\n"
        "for act in (lambda: pfimg.exists('gs://bucket'), lambda: pfimg.registries.S3Registry()):\n"
        "    try: act()\n"
        "    except pfimg.RegistryError as error: print(error.code, error)\n"
    )
    done = subprocess.run([sys.executable, "-W", "error", "-c", script], capture_output=True, text=True, check=False)
    line = "not_installed s3://, gs:// and az:// need the package obstore: pip install 'pfimg[s3]'\n"
    assert (done.stdout, done.stderr) == (line * 2, "")
