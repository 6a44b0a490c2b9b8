"""COVID Rural: opacity masks on radiographs of one region."""
