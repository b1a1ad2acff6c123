"""`s3://`, and likewise `gs://` and `az://`: images in a bucket of an object store.

`transport` puts images there and gets them; `bucket` makes the requests, `access` knows the way, and `failures` tells what went
wrong. All of it stands on obstore, which the extra `pfimg[s3]` installs.
"""

from typing import Any, Self

from pfimg.registries.s3.transport import S3Transport
from pfimg.signing import Key
from pfimg.transfer import TransportRegistry

__all__ = ["S3Registry", "S3Transport"]


class S3Registry(TransportRegistry):
    """A registry for `s3://` references, and for `gs://` and `az://`.

    Args:
        sign_key: The key that signs what is pushed and must have signed what is pulled, or the file that holds it; None for
            `PF_S3_REG_SIGN_KEY`, else the public one.
        options: Those that follow, and any setting that obstore has for such a store, under its name there (such as `region`,
            `access_key_id`, `skip_signature`, `server_side_encryption`). What is not given is read from the environment.

            - `jobs`: Requests at once.
            - `endpoint`: The address of the service; `AWS_ENDPOINT_URL_S3`, `AWS_ENDPOINT_URL`.
            - `profile`: Of the files that the AWS tools share; needs boto3. `AWS_PROFILE`.
            - `ca`: A file of certificates to trust beside the usual ones. `AWS_CA_BUNDLE`.
            - `allow_http`: Whether credentials may be used over plain http with another machine. `AWS_ALLOW_HTTP`.
            - `timeout`: Seconds that one request may take; 120 where it is not given.

    Example:
        >>> registries.S3Registry(region="eu-central-1").with_endpoint("https://objects.example.org")
        <S3Registry for s3://, gs://, az://>
    """

    def __init__(self, *, sign_key: Key | None = None, **options: Any) -> None:
        super().__init__(lambda ref: S3Transport(ref, **options), ("s3", "gs", "az"), sign_key=sign_key)
        self._options = options

    def with_endpoint(self, url: str) -> Self:
        """A copy that asks another endpoint."""
        return type(self)(sign_key=self._sign_key, **self._options | {"endpoint": url})
