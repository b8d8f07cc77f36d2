from build_helpers import fetched, upstream, ws  # noqa: F401  (fixtures)
