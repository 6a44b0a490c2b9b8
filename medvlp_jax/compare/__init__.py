"""Several methods at equal compute: trained, scored and set side by side by one command."""
