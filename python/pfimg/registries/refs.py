"""Image references: what `push` and `pull` take, such as `file:///srv/images/one` or `hf://user/repo:v2`.

| reference                                                   | parses to | meaning                                             |
|-------------------------------------------------------------|-----------|-----------------------------------------------------|
| `file:///abs/dir[#name]`                                    | FileRef   | a directory                                         |
| `s3://bucket[/prefix][#name]`, likewise `gs://` and `az://` | S3Ref     | an object store                                     |
| `hf://user/repo[:tag][@revision][#name]`                    | HfRef     | a Hugging Face dataset repository; tag `main`       |
| `ipfs://[cid or name[/path]]`                               | IpfsRef   | a UnixFS directory; without a CID only to push to   |
| `oci://host[:port]/repo[:tag][@sha256:…]`                   | OciRef    | a repository of an OCI registry; tag `latest`       |
| `http://host[:port][/path]`, likewise `https://`            | HttpRef   | what a web server shows of a directory; read-only   |

Each is a frozen value; `str` gives the canonical form, which parses to the same value again: it has no default tag, and no `/` at
its end. A `#name` counts only at the end and when it is 1 to 128 of the characters `A-Za-z0-9._-`, else `#` is part of the path.
Nothing is percent-decoded.

Limits: a reference says where an image is, not how to get in. One that carries credentials is refused, and not repeated in the
error.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Final, NamedTuple, TypeAlias

from pfimg.errors import BadRef, UnsupportedScheme

_NAME: Final = r"[A-Za-z0-9._-]{1,128}"
NAME: Final = re.compile(_NAME)
"""What the name of an image is made of."""

_LAST_PORT: Final = 65_535


class ImageRef:
    """What all references have in common, and how they are read.

    Attributes:
        key_word: The middle of `PF_…_REG_SIGN_KEY`, the variable with the key of such a registry; None where it has none.

    Example:
        >>> ref = ImageRef.parse("hf://alice/agent:v2")
        >>> ref.user, ref.repo, ref.tag
        ('alice', 'agent', 'v2')
    """

    __slots__ = ()
    key_word: ClassVar[str | None] = None

    @staticmethod
    def parse(url: str) -> "FileRef | S3Ref | HfRef | IpfsRef | OciRef | HttpRef":
        """Reads a reference of one of the schemes above.

        Raises:
            BadRef: It is malformed; the message shows the form that it must have.
            UnsupportedScheme: It has another scheme.

        Example:
            >>> str(ImageRef.parse("oci://localhost:5000/agents/one:latest"))
            'oci://localhost:5000/agents/one'
        """
        scheme, separator, rest = url.partition("://")
        if not separator:
            raise BadRef(f"{url!r} is not an image reference: it needs a scheme, as in file:///abs/dir")
        if scheme not in SCHEMES:
            raise UnsupportedScheme(f"scheme {scheme!r} is not known; the known ones are {', '.join(SCHEMES)}")
        # What stands there may be secret, so it is not shown.
        if "@" in rest.partition("/")[0] or ("?" in rest and scheme in ("http", "https")):
            raise BadRef(f"{scheme}://…: a reference holds no credentials and no query: leave them out")
        form = SCHEMES[scheme]
        fields = form.fields(rest)
        if fields is None:
            raise BadRef(f"{url!r} is not of the form {scheme}://{form.text}")
        return form.make(scheme, fields)


@dataclass(frozen=True, slots=True)
class FileRef(ImageRef):
    """A directory, by its absolute path, and which image in it: None means the unnamed one."""

    path: Path
    name: str | None = None
    scheme: ClassVar[str] = "file"
    key_word: ClassVar[str | None] = "file"

    def __post_init__(self) -> None:
        if not self.path.is_absolute():
            raise BadRef(f"{str(self.path)!r} is not an absolute path; a directory is named as in file:///abs/dir")
        _check_name(self.name)

    def __str__(self) -> str:
        return _with_name(f"file://{self.path}", self.name)


@dataclass(frozen=True, slots=True)
class S3Ref(ImageRef):
    """A bucket of an object store (a container in Azure), a prefix of keys in it, and which image there."""

    bucket: str
    prefix: str = ""
    name: str | None = None
    scheme: str = "s3"
    key_word: ClassVar[str | None] = "s3"

    def __post_init__(self) -> None:
        _check_name(self.name)

    def __str__(self) -> str:
        return _with_name(f"{self.scheme}://{self.bucket}{_suffix('/', self.prefix)}", self.name)


@dataclass(frozen=True, slots=True)
class HfRef(ImageRef):
    """A dataset repository, a branch or tag of it, or for reading a revision, which then decides; and which image there."""

    user: str
    repo: str
    tag: str = "main"
    revision: str | None = None
    name: str | None = None
    scheme: ClassVar[str] = "hf"
    key_word: ClassVar[str | None] = "hf"

    def __post_init__(self) -> None:
        _check_name(self.name)

    def __str__(self) -> str:
        tag = _suffix(":", self.tag if self.tag != "main" else None)
        return _with_name(f"hf://{self.user}/{self.repo}{tag}{_suffix('@', self.revision)}", self.name)


@dataclass(frozen=True, slots=True)
class IpfsRef(ImageRef):
    """A directory by its CID, or by a name of IPNS that leads to one, and for reading a path below it.

    A push makes the CID, so there it is what the caller expects, or None.
    """

    cid: str | None = None
    path: str = ""
    scheme: ClassVar[str] = "ipfs"
    key_word: ClassVar[str | None] = "ipfs"

    def __str__(self) -> str:
        return f"ipfs://{self.cid or ''}{_suffix('/', self.path)}"


@dataclass(frozen=True, slots=True)
class OciRef(ImageRef):
    """A repository, and a tag of it or the digest of one manifest, which then decides."""

    host: str
    repo: str
    port: int | None = None
    tag: str = "latest"
    digest: str | None = None
    scheme: ClassVar[str] = "oci"
    key_word: ClassVar[str | None] = "oci"

    def __post_init__(self) -> None:
        _check_port(self.port)

    def __str__(self) -> str:
        tag = _suffix(":", self.tag if self.tag != "latest" else None)
        return f"oci://{self.host}{_suffix(':', self.port)}/{self.repo}{tag}{_suffix('@', self.digest)}"


@dataclass(frozen=True, slots=True)
class HttpRef(ImageRef):
    """A directory on a web server. `path` is empty or begins with a `/`."""

    host: str
    port: int | None = None
    path: str = ""
    scheme: str = "https"

    def __post_init__(self) -> None:
        _check_port(self.port)

    def __str__(self) -> str:
        return f"{self.scheme}://{self.host}{_suffix(':', self.port)}{self.path}"


@dataclass(frozen=True, slots=True)
class OtherRef(ImageRef):
    """A reference of a scheme that somebody registered. What follows the `://` is for its adapter to understand."""

    scheme: str
    location: str

    def __str__(self) -> str:
        return f"{self.scheme}://{self.location}"


AnyRef: TypeAlias = FileRef | S3Ref | HfRef | IpfsRef | OciRef | HttpRef | OtherRef


def _suffix(sign: str, value: object) -> str:
    return f"{sign}{value}" if value else ""


def _with_name(location: str, name: str | None) -> str:
    if name is not None:
        return f"{location}#{name}"
    # The `/` keeps the end of such a path from being read as a name.
    return f"{location}/" if re.search(rf"#{_NAME}\Z", location) else location


def _check_name(name: str | None) -> None:
    if name is not None and not re.fullmatch(_NAME, name):
        raise BadRef(f"{name!r} is no name of an image: it needs 1 to 128 of the characters A-Z a-z 0-9 . _ -")


def _check_port(port: int | None) -> None:
    if port is not None and not 0 < port <= _LAST_PORT:
        raise BadRef(f"{port} is no port: it needs to be from 1 to {_LAST_PORT:,}")


class _Form(NamedTuple):
    """What may follow a scheme: for people, for the parser, and what comes of it."""

    text: str
    pattern: re.Pattern[str]
    make: Callable[[str, dict[str, Any]], FileRef | S3Ref | HfRef | IpfsRef | OciRef | HttpRef]

    def fields(self, rest: str) -> dict[str, Any] | None:
        """The parts that are there, by name; None when `rest` does not have this form."""
        name = re.search(rf"#({_NAME})\Z", rest) if self.text.endswith("[#name]") else None
        found = self.pattern.fullmatch(rest[: name.start()] if name else rest)
        if found is None:
            return None
        fields = {key: value for key, value in found.groupdict().items() if value is not None}
        if "port" in fields:
            fields["port"] = int(fields["port"])
        return fields | ({"name": name[1]} if name else {})


_AUTHORITY: Final = r"(?P<host>[A-Za-z0-9.-]+|\[[0-9A-Fa-f:.]+\])(?::(?P<port>[0-9]{1,5}))?"
_REPO_PART: Final = r"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*"
_KEY: Final = r"[^\x00-\x20\x7f]"

_FILE: Final = _Form(
    "/abs/dir[#name]", re.compile(r"(?P<path>/[^\x00]*)"), lambda _, fields: FileRef(**fields | {"path": Path(fields["path"])})
)
_S3: Final = _Form(
    "bucket[/prefix][#name]",
    re.compile(rf"(?P<bucket>[A-Za-z0-9._-]+)(?:/(?P<prefix>{_KEY}*))?"),
    lambda scheme, fields: S3Ref(**fields | {"prefix": fields.get("prefix", "").rstrip("/"), "scheme": scheme}),
)
_HF: Final = _Form(
    "user/repo[:tag][@revision][#name]",
    re.compile(
        r"(?P<user>[A-Za-z0-9._-]+)/(?P<repo>[A-Za-z0-9._-]+)"
        r"(?::(?P<tag>[A-Za-z0-9_][A-Za-z0-9._+-]*))?(?:@(?P<revision>[A-Za-z0-9_][A-Za-z0-9._+/-]*))?"
    ),
    lambda _, fields: HfRef(**fields),
)
_IPFS: Final = _Form(
    "[cid or name[/path]]",
    re.compile(rf"(?:(?P<cid>[A-Za-z0-9_-]+(?:\.[A-Za-z0-9_-]+)*)(?:/(?P<path>{_KEY}*))?)?"),
    lambda _, fields: IpfsRef(**fields | {"path": fields.get("path", "").strip("/")}),
)
_OCI: Final = _Form(
    "host[:port]/repo[:tag][@sha256:<64 hex>]",
    re.compile(
        rf"{_AUTHORITY}/(?P<repo>{_REPO_PART}(?:/{_REPO_PART})*)"
        r"(?::(?P<tag>[A-Za-z0-9_][A-Za-z0-9._-]{0,127}))?(?:@(?P<digest>sha256:[0-9a-f]{64}))?"
    ),
    lambda _, fields: OciRef(**fields),
)
_HTTP: Final = _Form(
    "host[:port][/path]",
    re.compile(rf"{_AUTHORITY}(?P<path>/(?:(?!#){_KEY})*)?"),
    lambda scheme, fields: HttpRef(**fields | {"path": fields.get("path", "").rstrip("/"), "scheme": scheme}),
)

SCHEMES: Final[dict[str, _Form]] = {
    "file": _FILE, "s3": _S3, "gs": _S3, "az": _S3, "hf": _HF, "ipfs": _IPFS, "oci": _OCI, "http": _HTTP, "https": _HTTP,
}  # fmt: skip
"""The schemes that references can have without being registered."""
