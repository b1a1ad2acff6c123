"""The environment document and what it leaves out."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pfimg import environment
from pfimg.errors import FormatError

SECRETS = [
    "TOKEN", "HF_TOKEN", "TOKEN_FILE", "my_secret", "DB_PASSWORD", "PASSWD", "FTP_PWD", "API_KEY", "APIKEY", "X_APIKEY_Y",
    "AUTH", "BEARER", "SSH_KEY", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "stripe_key", "PRIVATE_KEY_ID",
    "PFIMG_KEY_PASSPHRASE",
]  # fmt: skip
HARMLESS = ["PWD", "OLDPWD", "HOME", "KEYBOARD", "KEY_BINDINGS", "TOKENIZERS_PARALLELISM", "AUTHOR", "MONKEY", "PASSWORDLESS", ""]


@pytest.mark.parametrize("name", SECRETS)
def test_names_of_secrets(name: str) -> None:
    assert environment.is_secret(name)


@pytest.mark.parametrize("name", HARMLESS)
def test_harmless_names(name: str) -> None:
    assert not environment.is_secret(name)


def variables(document: bytes) -> dict[str, str]:
    found: dict[str, str] = json.loads(document)["vars"]
    return found


def test_the_document_byte_for_byte() -> None:
    document = environment.build({"Z": "é", "PWD": "/x", "API_KEY": "1"}, "d")
    assert document == '{"cwd":"d","kind":"env.v1","vars":{"API_KEY":"<redacted>","PWD":"/x","Z":"é"}}'.encode()


def test_patterns_add_to_the_default_and_work_without_it() -> None:
    env = {"HF_TOKEN": "1", "MY_THING": "2", "HOME": "3"}
    assert variables(environment.build(env, "", scrub_env=["THING$"])) == {
        "HF_TOKEN": "<redacted>",
        "HOME": "3",
        "MY_THING": "<redacted>",
    }
    assert variables(environment.build(env, "", scrub_env=["THING$"], default_scrub_env=False))["HF_TOKEN"] == "1"
    assert variables(environment.build({"PWD": "/x"}, "", scrub_env=["^PWD$"])) == {"PWD": "<redacted>"}


@given(st.dictionaries(st.text(st.characters(exclude_categories=["Cs"])), st.text(st.characters(exclude_categories=["Cs"]))))
def test_every_name_is_kept_in_order_and_every_harmless_value(env: dict[str, str]) -> None:
    found = variables(environment.build(env, "/"))
    assert list(found) == sorted(env)
    assert {name: value for name, value in env.items() if not environment.is_secret(name)}.items() <= found.items()
    assert {found[name] for name in env if environment.is_secret(name)} <= {"<redacted>"}


def test_a_bad_pattern_is_named() -> None:
    with pytest.raises(FormatError, match=r"scrub_env: '\(' is not a regular expression") as caught:
        environment.build({}, "", scrub_env=["ok", "("])
    assert caught.value.field == "scrub_env"


def test_what_is_not_unicode_is_named_without_its_value() -> None:
    with pytest.raises(FormatError, match="'ODD' is not valid Unicode") as caught:
        environment.build({"A": "1", "ODD": "hidden\udcff"}, "")
    assert "hidden" not in str(caught.value)
    with pytest.raises(FormatError, match="working directory"):
        environment.build({}, "\udcff")


@pytest.mark.parametrize("env", [{"A": 1}, {1: "A"}, {"A": None}])
def test_only_text(env: dict[str, str]) -> None:
    with pytest.raises(TypeError, match="must be str"):
        environment.build(env, "")


def test_one_str_is_no_list_of_patterns() -> None:
    with pytest.raises(TypeError, match="not one str"):
        environment.build({}, "", scrub_env="TOKEN")
