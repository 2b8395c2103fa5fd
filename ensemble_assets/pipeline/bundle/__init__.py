"""Make the bundle of a collection: collect its contents, write or keep it, describe it, upload it."""
