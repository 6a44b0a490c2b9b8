"""From raw files to records: labels, images, report sections, sentences, staged builds and the record reader."""
