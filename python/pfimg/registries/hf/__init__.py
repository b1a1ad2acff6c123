"""`hf://`: images in dataset repositories of the Hugging Face Hub.

`transport` puts images there and gets them; `repository` makes the requests, `access` knows the way, and `failures` tells what
went wrong. What is changed is changed by `huggingface_hub`, which the extra `pfimg[hf]` installs.
"""

from typing import Any, Self

from pfimg.registries.hf.transport import HfTransport
from pfimg.signing import Key
from pfimg.transfer import TransportRegistry

__all__ = ["HfRegistry", "HfTransport"]


class HfRegistry(TransportRegistry):
    """A registry for `hf://` references.

    Args:
        token: What proves who is asking; None for `HF_TOKEN`, else what `hf auth login` has kept.
        endpoint: The address of the Hub; None for `HF_ENDPOINT`, else `https://huggingface.co`.
        public: Whether everybody may read a repository that a push creates; it is private otherwise. One that is there already
            stays as it is.
        sign_key: The key that signs what is pushed and must have signed what is pulled, or the file that holds it; None for
            `PF_HF_REG_SIGN_KEY`, else the public one.
        jobs: Requests at once.

    Example:
        >>> registries.HfRegistry(public=True).with_endpoint("https://hub.example.org")
        <HfRegistry for hf://>
    """

    def __init__(
        self,
        token: str | None = None,
        *,
        endpoint: str | None = None,
        public: bool = False,
        sign_key: Key | None = None,
        jobs: int | None = None,
    ) -> None:
        self._options: dict[str, Any] = {"token": token, "endpoint": endpoint, "public": public, "jobs": jobs}
        super().__init__(lambda ref: HfTransport(ref, **self._options), ("hf",), sign_key=sign_key)

    def with_endpoint(self, url: str) -> Self:
        """A copy that asks another Hub."""
        return type(self)(sign_key=self._sign_key, **self._options | {"endpoint": url})
