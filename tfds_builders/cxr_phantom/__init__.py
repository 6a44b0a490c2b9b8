"""Rendered chest X-rays with sectioned reports, labels, boxes and masks: data that anyone may use and show."""
