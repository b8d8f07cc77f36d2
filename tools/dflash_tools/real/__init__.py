"""The check on real text: a trained drafter against its published target, both fetched from the package index."""
