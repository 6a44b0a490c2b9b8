"""A user's own images and reports, listed in a manifest, as records."""
