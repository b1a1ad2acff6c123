"""Getting into a registry of containers: passwords, tokens, certificates, addresses; and what nobody else gets to see."""

from __future__ import annotations

import base64
import json
import logging
from typing import TYPE_CHECKING, Any

import pytest
from tests.registries.test_contract import everything
from tests.servers import OciServer, Response, request
from tests.servers.proxy import Proxy, answer, passed, proxy, respond
from tests.servers.scripted import Answer, Peer, scripted

import pfimg
from pfimg.registries import web
from pfimg.registries.connections import Patience
from pfimg.registries.oci.address import address

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

SHORT = Patience(connect=2, silence=2, window=2, least=100, attempts=2, budget=10, pause=0.001)
WRONG = "battery staple"


@pytest.fixture(autouse=True)
def _nobody_is_logged_in(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("OCI_BEARER", "OCI_USERNAME", "OCI_PASSWORD", "PF_OCI_INSECURE", "SSL_CERT_FILE", "SSL_CERT_DIR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path / "docker"))
    monkeypatch.setattr(web, "Patience", lambda: SHORT)


@pytest.fixture
def logged_in(tmp_path: Path) -> Callable[[dict[str, Any]], None]:
    """What `docker login` has kept."""

    def write(values: dict[str, Any]) -> None:
        (tmp_path / "docker").mkdir(exist_ok=True)
        (tmp_path / "docker" / "config.json").write_text(json.dumps(values))

    return write


def new_ref(server: OciServer) -> str:
    return f"oci://{server.registry}/{server.repository()}"


def moved(store: pfimg.PfStore, other: pfimg.PfStore, image: str, ref: str, **options: Any) -> None:
    """Pushes and pulls."""
    registry = pfimg.registries.open(ref, **options)
    assert not registry.exists(ref)
    registry.push(ref, store.get_manifest(image), store)
    assert registry.exists(ref)
    registry.pull(ref, other)
    assert everything(other, image) == everything(store, image)


# Passwords


def test_a_password_that_is_given(distribution_basic: OciServer, store: pfimg.PfStore, other: pfimg.PfStore, image: str) -> None:
    moved(
        store, other, image, new_ref(distribution_basic), username=distribution_basic.user, password=distribution_basic.password
    )


def test_a_password_of_the_environment(
    monkeypatch: pytest.MonkeyPatch, distribution_basic: OciServer, store: pfimg.PfStore, other: pfimg.PfStore, image: str
) -> None:
    monkeypatch.setenv("OCI_USERNAME", distribution_basic.user)
    monkeypatch.setenv("OCI_PASSWORD", distribution_basic.password)
    ref = new_ref(distribution_basic)
    pfimg.push(store, image, ref)
    assert pfimg.pull(ref, other).image == image
    assert pfimg.list_images(ref) == [ref]


def test_a_password_that_docker_has_kept(
    logged_in: Callable[[dict[str, Any]], None],
    distribution_basic: OciServer,
    store: pfimg.PfStore,
    other: pfimg.PfStore,
    image: str,
) -> None:
    server = distribution_basic
    auth = base64.b64encode(f"{server.user}:{server.password}".encode()).decode()
    logged_in({"auths": {"other.example": {"auth": "eDp5"}, server.registry: {"auth": auth}}})
    moved(store, other, image, new_ref(server))


@pytest.mark.parametrize("options", [{}, {"username": "tester", "password": WRONG}, {"token": WRONG}])
@pytest.mark.parametrize("kind", ["distribution_basic", "distribution_token"])
@pytest.mark.server("distribution")
def test_who_may_not_get_in_is_told_what_to_do(
    request: pytest.FixtureRequest,
    caplog: pytest.LogCaptureFixture,
    store: pfimg.PfStore,
    image: str,
    kind: str,
    options: dict[str, str],
) -> None:
    server: OciServer = request.getfixturevalue(kind)
    ref = new_ref(server)
    registry = pfimg.registries.open(ref, **options)
    with caplog.at_level(logging.DEBUG):
        for act in (lambda: registry.push(ref, store.get_manifest(image), store), lambda: registry.pull(ref, store)):
            # Whom the service gives a token without credentials may read, but finds nothing.
            with pytest.raises(pfimg.BackendError, match=r"docker login|no such image") as caught:
                act()
            assert caught.value.status in (401, 404)
            assert not caught.value.retryable
            assert WRONG not in str(caught.value)
    assert WRONG not in caplog.text
    assert base64.b64encode(WRONG.encode()).decode()[:12] not in caplog.text


def test_nothing_is_sent_in_clear(
    monkeypatch: pytest.MonkeyPatch, distribution_basic: OciServer, store: pfimg.PfStore, image: str
) -> None:
    """This machine under an address that does not say so."""
    monkeypatch.setenv("OCI_USERNAME", distribution_basic.user)
    monkeypatch.setenv("OCI_PASSWORD", distribution_basic.password)
    with proxy(distribution_basic.base_url) as between:
        ref = f"oci://0.0.0.0:{between.url.rpartition(':')[2]}/a/b"
        with pytest.raises(pfimg.BackendError, match=r"TLS|no connection|broke off"):
            pfimg.exists(ref)
        monkeypatch.setenv("PF_OCI_INSECURE", "1")
        for act in (lambda: pfimg.exists(ref), lambda: pfimg.push(store, image, ref)):
            with pytest.raises(pfimg.BackendError, match="not sent in clear"):
                act()
        assert between.asked
        assert not any("authorization" in asked.headers for asked in between.asked)


def test_a_registry_without_tls_needs_to_be_allowed(
    monkeypatch: pytest.MonkeyPatch, distribution: OciServer, store: pfimg.PfStore, other: pfimg.PfStore, image: str
) -> None:
    ref = f"oci://0.0.0.0:{distribution.port}/{distribution.repository()}"
    with pytest.raises(pfimg.BackendError):
        pfimg.push(store, image, ref)
    moved(store, other, image, ref, insecure=True)
    monkeypatch.setenv("PF_OCI_INSECURE", "1")
    assert pfimg.exists(ref)
    with pytest.raises(pfimg.BackendError):
        pfimg.registries.open(ref, insecure=False).exists(ref)
    for no in ("0", ""):
        monkeypatch.setenv("PF_OCI_INSECURE", no)
        with pytest.raises(pfimg.BackendError):
            pfimg.exists(ref)


def test_credentials_do_not_go_where_blobs_are(
    distribution_basic: OciServer, store: pfimg.PfStore, other: pfimg.PfStore, image: str
) -> None:
    server = distribution_basic
    with proxy(server.base_url) as between, scripted() as storage:
        ref = f"oci://{between.registry}/{server.repository()}"
        registry = pfimg.registries.open(ref, username=server.user, password=server.password)

        def elsewhere(peer: Peer, forward: Callable[[], Response]) -> None:
            digest = peer.asked.path.rpartition("/")[2]
            storage.on(f"/{digest}", Answer(200, forward().body))
            answer(302, {"Location": f"{storage.url}/{digest}"})(peer, forward)

        registry.push(ref, store.get_manifest(image), store)
        between.always("GET", "/blobs/", elsewhere)
        registry.pull(ref, other)
        assert storage.asked
        assert not any("authorization" in asked.headers for asked in storage.asked)
        # Nor to whom an upload is sent.
        between.always("POST", "/blobs/uploads/", answer(202, {"Location": f"{storage.url}/upload"}))
        storage.on("/upload", Answer(201))
        with pytest.raises(pfimg.PfimgError):
            registry.push(f"{ref}:other", store.get_manifest(pfimg.snapshot(store, agent="other")), store)
        assert not any("authorization" in asked.headers for asked in storage.asked)


# Tokens


def tokens_of(server: OciServer) -> Any:
    assert server.tokens is not None
    server.tokens.requests.clear()
    return server.tokens


def test_a_token_for_a_password(distribution_token: OciServer, store: pfimg.PfStore, other: pfimg.PfStore, image: str) -> None:
    server = distribution_token
    tokens = tokens_of(server)
    ref = new_ref(server)
    moved(store, other, image, ref, username=server.user, password=server.password)
    name = ref.partition("/tests/")[2]
    assert {(asked.method, asked.user, asked.granted) for asked in tokens.requests} == {("GET", server.user, True)}
    assert {tuple(asked.scopes) for asked in tokens.requests} == {
        (f"repository:tests/{name}:pull",),
        (f"repository:tests/{name}:pull,push",),
    }
    # One for each that was opened, and one more for writing.
    assert len(tokens.requests) == 5


def test_an_identity_token(
    logged_in: Callable[[dict[str, Any]], None],
    distribution_token: OciServer,
    store: pfimg.PfStore,
    other: pfimg.PfStore,
    image: str,
) -> None:
    tokens = tokens_of(distribution_token)
    logged_in({"auths": {distribution_token.registry: {"identitytoken": tokens.refresh_token}}})
    moved(store, other, image, new_ref(distribution_token))
    assert {(asked.method, asked.granted) for asked in tokens.requests} == {("POST", True)}


def test_a_token_that_is_given_is_sent_as_it_is(
    monkeypatch: pytest.MonkeyPatch, distribution_token: OciServer, store: pfimg.PfStore, other: pfimg.PfStore, image: str
) -> None:
    tokens = tokens_of(distribution_token)
    ref = new_ref(distribution_token)
    monkeypatch.setenv("OCI_BEARER", tokens.token(distribution_token.user, [f"repository:tests/{ref[-16:]}:pull,push"]))
    pfimg.push(store, image, ref)
    assert pfimg.pull(ref, other).image == image
    assert tokens.requests == []
    monkeypatch.setenv("OCI_BEARER", tokens.token(distribution_token.user, ["repository:tests/another:pull,push"]))
    with pytest.raises(pfimg.BackendError, match="not accept the credentials, or not for this"):
        pfimg.push(store, image, ref)


def test_who_has_no_credentials_may_read_but_not_write(
    distribution_token: OciServer, store: pfimg.PfStore, other: pfimg.PfStore, image: str
) -> None:
    server = distribution_token
    ref = new_ref(server)
    registry = pfimg.registries.OciRegistry(username=server.user, password=server.password)
    registry.push(ref, store.get_manifest(image), store)
    tokens = tokens_of(server)
    assert pfimg.exists(ref)
    assert pfimg.pull(ref, other).image == image
    assert {(asked.user, asked.granted) for asked in tokens.requests} == {("", True)}
    with pytest.raises(pfimg.BackendError, match="asks for credentials: log in with docker login") as caught:
        pfimg.push(store, pfimg.snapshot(store, agent="other"), ref)
    assert caught.value.status == 401
    assert pfimg.pull(ref, other).image == image


def test_tokens_that_have_expired_before_they_come_are_no_endless_loop(distribution_token: OciServer) -> None:
    server = distribution_token
    tokens = tokens_of(server)
    tokens.lifetime = -120
    try:
        with pytest.raises(pfimg.BackendError, match="does not accept the credentials"):
            pfimg.registries.open(new_ref(server), username=server.user, password=server.password).exists(new_ref(server))
    finally:
        tokens.lifetime = 300
    assert 0 < len(tokens.requests) < 5


@pytest.mark.parametrize("layout", ["reference", "packed"])
def test_a_token_that_expires_in_the_middle_is_fetched_anew(
    distribution_token: OciServer, store: pfimg.PfStore, other: pfimg.PfStore, make_image: Any, layout: str
) -> None:
    server = distribution_token
    image = make_image(pages=60)
    with proxy(server.base_url) as between:
        ref = f"oci://{between.registry}/{server.repository()}"
        registry = pfimg.registries.OciRegistry(username=server.user, password=server.password)
        expired: set[str] = set()

        def expiring(peer: Peer, _forward: Callable[[], Response]) -> None:
            """Sends on without a token that has been used: the registry itself says then that it wants one."""
            headers = dict(peer.asked.headers)
            if headers.get("authorization") in expired:
                del headers["authorization"]
            respond(peer, request(f"{server.base_url}{peer.asked.path}", peer.asked.method, peer.asked.body or None, headers))

        def last(peer: Peer, forward: Callable[[], Response]) -> None:
            expired.add(peer.asked.headers["authorization"])
            expiring(peer, forward)

        between.on("PUT", "/blobs/uploads/", passed, last)
        between.on("PUT", "/manifests/", last)
        between.on("GET", "/blobs/", passed, passed, last)
        between.always(".*", "", expiring)
        assert registry.push(ref, store.get_manifest(image), store, layout=layout).sent == len(everything(store, image))
        assert len(expired) == 2
        found = pfimg.registries.open(ref, username=server.user, password=server.password).pull(ref, other)
        assert found.image == image
        assert len(expired) == 3
    assert everything(other, image) == everything(store, image)


@pytest.mark.parametrize(
    ("realm", "reply", "message"),
    [
        ("http://192.0.2.1/token", None, "credentials would go in clear"),
        ("{url}/token", Answer(200, b"{}"), "what is no token"),
        ("{url}/token", Answer(200, b'{"token": 1}'), "what is no token"),
        ("{url}/token", Answer(200, b'{"token": "a\\nb"}'), "what is no token"),
        ("{url}/token", Answer(200, b'{"token": "a", "expires_in": "soon"}'), "what is no token"),
        ("{url}/token", Answer(200, b"[" * 100_000), "what is no token"),
        ("{url}/token", Answer(401), "gives these credentials no token"),
        ("{url}/token", Answer(307, headers={"Location": "/stolen"}), "gives these credentials no token"),
        ("ftp://x/token", None, "ftp://x/token"),
        ("nowhere", None, "nowhere"),
    ],
)
@pytest.mark.parametrize("given", [{"username": "me", "password": WRONG}, {"identity": WRONG}])
def test_token_services_that_err(
    logged_in: Callable[[dict[str, Any]], None], realm: str, reply: Answer | None, message: str, given: dict[str, str]
) -> None:
    with scripted() as server:
        asked = f'Bearer realm="{realm.format(url=server.url)}",service="s"'
        server.otherwise = Answer(401, headers={"WWW-Authenticate": asked})
        query = "" if "identity" in given else "?service=s&scope=repository%3Aa%2Fb%3Apull"
        if reply is not None:
            server.on(f"/token{query}", reply)
        if "identity" in given:
            logged_in({"auths": {f"127.0.0.1:{server.port}": {"identitytoken": WRONG}}})
            given = {}
        ref = f"oci://127.0.0.1:{server.port}/a/b"
        with pytest.raises(pfimg.BackendError, match=message) as caught:
            pfimg.registries.open(ref, **given).exists(ref)
        assert WRONG not in str(caught.value)
        assert not any(request.path == "/stolen" for request in server.asked)


def test_a_token_of_little_life_is_used_and_fetched_again() -> None:
    with scripted() as server:
        server.otherwise = Answer(401, headers={"WWW-Authenticate": f'Bearer realm="{server.url}/token"'})
        tokens = [json.dumps({"token": f"t{at}", "expires_in": 0.0001}).encode() for at in range(9)]
        server.on("/token?scope=repository%3Aa%2Fb%3Apull", *(Answer(200, token) for token in tokens))

        def list_tags(peer: Peer) -> None:
            (Answer(200, b'{"tags": ["a"]}') if "authorization" in peer.asked.headers else server.otherwise)(peer)

        server.on("/v2/a/b/tags/list?n=1000", list_tags)
        assert pfimg.list_images(f"oci://127.0.0.1:{server.port}/a/b") == [f"oci://127.0.0.1:{server.port}/a/b:a"]


# Certificates and addresses


def test_certificates(
    monkeypatch: pytest.MonkeyPatch, distribution_tls: OciServer, store: pfimg.PfStore, other: pfimg.PfStore, image: str
) -> None:
    server = distribution_tls
    ref = new_ref(server)
    given = {"username": server.user, "password": server.password}
    with pytest.raises(pfimg.BackendError, match=r"certificate is not trusted.*SSL_CERT_FILE"):
        pfimg.registries.open(ref, **given).exists(ref)
    # Allowing to do without TLS does not mean to trust anybody.
    with pytest.raises(pfimg.BackendError, match="certificate is not trusted"):
        pfimg.registries.open(ref, insecure=True, **given).exists(ref)
    moved(store, other, image, ref, ca=server.ca, **given)
    monkeypatch.setenv("SSL_CERT_FILE", str(server.ca))
    assert pfimg.registries.open(ref, **given).exists(ref)


def test_behind_a_proxy_that_ends_tls_a_registry_may_call_itself_one_without(
    monkeypatch: pytest.MonkeyPatch, distribution_tls: OciServer, store: pfimg.PfStore, image: str
) -> None:
    """Its answers are changed where they come in, since that proxy is not here."""
    server = distribution_tls
    ref = new_ref(server)
    registry = pfimg.registries.open(ref, username=server.user, password=server.password, ca=server.ca)
    own = web.WebClient.request

    def plain(self: web.WebClient, method: str, url: str, **options: Any) -> web.Reply:
        reply = own(self, method, url, **options)
        if "Location" in reply.headers:
            reply.headers["Location"] = reply.headers["Location"].replace("https://", "http://")
        return reply

    monkeypatch.setattr(web.WebClient, "request", plain)
    assert registry.push(ref, store.get_manifest(image), store).sent > 0


@pytest.mark.parametrize(
    ("ref", "expected"),
    [
        ("oci://ghcr.io/me/agents", "https://ghcr.io"),
        ("oci://registry.example:5000/x", "https://registry.example:5000"),
        ("oci://docker.io/me/agents", "https://registry-1.docker.io"),
        ("oci://index.docker.io/me/agents", "https://registry-1.docker.io"),
        ("oci://[2001:db8::1]:5000/x", "https://[2001:db8::1]:5000"),
    ],
)
def test_addresses(ref: str, expected: str) -> None:
    parsed = pfimg.ImageRef.parse(ref)
    assert isinstance(parsed, pfimg.OciRef)
    assert address(parsed, insecure=None) == expected


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
def test_this_machine_is_asked_whether_it_speaks_tls(distribution: OciServer, distribution_tls: OciServer, host: str) -> None:
    for server, scheme in ((distribution, "http"), (distribution_tls, "https")):
        assert address(pfimg.OciRef(host, "x", server.port), insecure=None) == f"{scheme}://{host}:{server.port}"


@pytest.fixture
def between(distribution: OciServer) -> Iterator[Proxy]:
    with proxy(distribution.base_url) as running:
        yield running


def test_who_is_not_asked_for_credentials_looks_for_none(
    between: Proxy, logged_in: Callable[[dict[str, Any]], None], distribution: OciServer, store: pfimg.PfStore, image: str
) -> None:
    logged_in({"credsStore": "nowhere"})
    ref = f"oci://{between.registry}/{distribution.repository()}"
    registry = pfimg.registries.open(ref, username="me", password=WRONG)
    registry.push(ref, store.get_manifest(image), store)
    pfimg.pull(ref, store)
    assert not any("authorization" in asked.headers for asked in between.asked)
