"""A small Hugging Face Hub for tests: repositories, commits, LFS and downloads over HTTP, in memory and a temporary directory.

It is written from what the published client (`huggingface_hub`) sends and expects, and proven by that client in
`tests/registries/test_hub*.py`; nothing of pfimg is in it, so that a mistake of ours cannot be on both sides. The rooms, each
using only those before it: `messages` (requests, replies, refusals), `limits`, `repos` (commits, trees, refs), `objects` (files
in LFS), `state` (all that is kept, who may see it), `routes` (which function answers), `api`, `content` and `lfs` (the answers),
`faults` (what goes wrong on demand), `server` (the sockets, and `Hub`), `client` (settings for the published client).

As on the real Hub there are two origins: the Hub itself, and a storage host that takes and gives the contents of LFS files under
signed addresses and refuses credentials. Not here: Xet, pull requests, copies between repositories, git over HTTP, pages for
people, and the line `copyFile` of a commit, which the client never sends (it copies by `lfsFile` and `file`).
"""

from tests.hub.server import Hub

__all__ = ["Hub"]
