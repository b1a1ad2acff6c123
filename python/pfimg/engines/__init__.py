"""Plug-ins for inference engines, one file each; an engine's own loader imports its file, and nothing else does.

| engine | class to name in its configuration                    |
|--------|-------------------------------------------------------|
| vLLM   | `pfimg.engines.vllm`, `PfimgTier`                     |
| SGLang | `pfimg.engines.sglang`, `PfimgStorage`                |
| LMCache| `pfimg.engines.lmcache`, `PfimgL2Adapter`             |

All three keep an engine's pages in a `pfimg.PageCache`, and take the words of `pfimg.engines.tier.TierOptions`.
docs/engines has a page for each, with the exact configuration.
"""
