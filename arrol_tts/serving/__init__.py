"""``arrol-serve``: votes behind OpenAI's API, for apps in any language. See docs/endpoint.md."""
