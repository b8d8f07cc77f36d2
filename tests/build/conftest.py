from build_helpers import fetched, offline, series, templates, upstream, ws  # noqa: F401  (fixtures)
