"""Keys of one's own: new ones, and those that sign. Passphrases come from a variable or a prompt, never from an argument."""

import sys
from pathlib import Path

import click

from pfimg import SigningKey, config

from .app import App, Command, pass_app
from .exits import Exit, Failure


@click.command(cls=Command)
@click.argument("path", type=click.Path(dir_okay=False, path_type=Path))
@click.option(
    "--algorithm",
    type=click.Choice(["ed25519", "cosign"]),
    default="ed25519",
    show_default=True,
    help="cosign: ECDSA over P-256, the kind of key that cosign makes.",
)
@click.option("--encrypt", is_flag=True, help="Encrypt it with a passphrase: $PFIMG_KEY_PASSPHRASE, else asked for.")
@pass_app
def keygen(app: App, path: Path, algorithm: str, *, encrypt: bool) -> None:
    """Make a pair of keys: PATH signs, PATH.pub checks.

    Give PATH to `push --sign`, and PATH.pub to whoever pulls with `--trust`. PATH is for its owner alone; it is encrypted where
    $PFIMG_KEY_PASSPHRASE is set. No file is overwritten.
    """
    passphrase = config.key_passphrase()
    if encrypt and passphrase is None:
        if not sys.stdin.isatty():
            raise Failure(Exit.USAGE, "there is no terminal to ask for a passphrase on: set PFIMG_KEY_PASSPHRASE")
        passphrase = _ask(path, confirm=True)
    key = SigningKey.generate("ed25519" if algorithm == "ed25519" else "ecdsa-p256-sha256")
    key.save(path, passphrase)
    public = key.public_key
    document = {
        "private_key": str(path),
        "public_key": f"{path}.pub",
        "algorithm": key.algorithm,
        "encrypted": passphrase is not None,
        "fingerprint": public.fingerprint if public else None,
    }
    app.emit(document, f"{path}.pub\n{document['fingerprint']}")


def key_to_sign(path: Path | None) -> SigningKey | None:
    """The key in a file that was named, whose passphrase is asked for where it has one and somebody is there to ask."""
    if path is None:
        return None
    asks = config.key_passphrase() is None and sys.stdin.isatty()
    return SigningKey.from_file(path, (lambda: _ask(path)) if asks else None)


def _ask(path: Path, *, confirm: bool = False) -> str:
    return str(click.prompt(f"passphrase of {path}", hide_input=True, confirmation_prompt=confirm, err=True))
