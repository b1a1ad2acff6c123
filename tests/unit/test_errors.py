"""The error tree: built-ins that callers already catch, attributes, printing, pickling."""

import errno
import pickle

import pytest

from pfimg import errors

BUILT_INS: dict[type[errors.PfimgError], tuple[type[Exception], ...]] = {
    errors.PfimgError: (RuntimeError,),
    errors.StoreError: (errors.PfimgError,),
    errors.BlobNotFound: (errors.StoreError, KeyError),
    errors.IntegrityError: (errors.StoreError, ValueError),
    errors.FormatError: (errors.StoreError, ValueError),
    errors.LimitExceeded: (errors.StoreError, ValueError),
    errors.StoreOSError: (errors.StoreError, OSError),
    errors.StoreFileExistsError: (errors.StoreOSError, FileExistsError),
    errors.StoreFileNotFoundError: (errors.StoreOSError, FileNotFoundError),
    errors.StoreNotADirectoryError: (errors.StoreOSError, NotADirectoryError),
    errors.StorePermissionError: (errors.StoreOSError, PermissionError),
    errors.RegistryError: (errors.PfimgError,),
    errors.UnsupportedScheme: (errors.RegistryError,),
    errors.BadRef: (errors.RegistryError, ValueError),
    errors.BackendError: (errors.RegistryError, OSError),
    errors.RegistryTimeout: (errors.BackendError, TimeoutError),
    errors.Conflict: (errors.BackendError,),
    errors.SignatureError: (errors.RegistryError,),
}
PLACES = {"digest": "sha256:00", "path": "/a", "index": 0, "field": "pages[3].k", "offset": 0, "limit": 5}


def test_every_class_is_listed_here_and_drawn() -> None:
    defined = {item for item in vars(errors).values() if isinstance(item, type) and issubclass(item, errors.PfimgError)}
    assert defined == set(BUILT_INS)
    assert errors.__doc__ is not None
    for kind in defined:
        assert f" {kind.__name__}" in errors.__doc__


def test_codes_are_distinct_but_for_the_kinds_of_a_system_error() -> None:
    codes = [kind.code for kind in BUILT_INS if not issubclass(kind, errors.StoreOSError)]
    assert len(set(codes)) == len(codes)
    assert {kind.code for kind in BUILT_INS if issubclass(kind, errors.StoreOSError)} == {"io"}


@pytest.mark.parametrize("kind", BUILT_INS)
def test_caught_as_the_built_in(kind: type[errors.PfimgError]) -> None:
    for built_in in BUILT_INS[kind]:
        with pytest.raises(built_in, match="blob 'x' is"):
            raise kind("blob 'x' is \"gone\"")


@pytest.mark.parametrize("kind", BUILT_INS)
def test_prints_unquoted_and_survives_pickling(kind: type[errors.PfimgError]) -> None:
    error = kind("blob 'x' is gone", digest="sha256:00", path="/a")
    error.add_note("seen twice")
    copy = pickle.loads(pickle.dumps(error))
    assert type(copy) is kind
    assert str(copy) == str(error) == "blob 'x' is gone"
    assert (copy.code, copy.digest, copy.path) == (kind.code, "sha256:00", "/a")
    assert copy.__notes__ == ["seen twice"]


def test_attributes_are_none_unless_given() -> None:
    assert [getattr(errors.FormatError("x"), name) for name in PLACES] == [None] * len(PLACES)
    error = errors.FormatError("x", code="own", **PLACES)  # type: ignore[arg-type]
    assert {name: getattr(error, name) for name in PLACES} == PLACES
    assert error.code == "own"
    assert errors.FormatError.code == "format"


def test_a_backend_error_tells_what_the_service_said() -> None:
    error = pickle.loads(pickle.dumps(errors.RegistryTimeout("slow", status=503, retryable=True)))
    assert (error.status, error.retryable, error.code) == (503, True, "timeout")
    assert (errors.BackendError("x").status, errors.BackendError("x").retryable) == (None, False)


def test_a_conflict_tells_which_image_is_there() -> None:
    error = pickle.loads(pickle.dumps(errors.Conflict("another is there", image="sha256:00")))
    assert (error.image, error.status, error.retryable, error.code) == ("sha256:00", 412, False, "conflict")


@pytest.mark.parametrize(
    ("number", "kind"),
    [
        (errno.EACCES, errors.StorePermissionError),
        (errno.EEXIST, errors.StoreFileExistsError),
        (errno.ENOENT, errors.StoreFileNotFoundError),
        (errno.ENOTDIR, errors.StoreNotADirectoryError),
        (errno.ENOSPC, errors.StoreOSError),
        (errno.EISDIR, errors.StoreOSError),
    ],
)
def test_a_system_error_keeps_its_kind_number_and_file(number: int, kind: type[errors.StoreOSError]) -> None:
    found = errors.StoreOSError.of(OSError(number, "no way", "/some/file"))
    assert type(found) is kind
    for error in (found, pickle.loads(pickle.dumps(found))):
        assert str(error) == "/some/file: no way"
        assert (error.errno, error.filename, error.path) == (number, "/some/file", "/some/file")


def test_a_system_error_without_a_file() -> None:
    assert str(errors.StoreOSError.of(OSError("just words"))) == "just words"
